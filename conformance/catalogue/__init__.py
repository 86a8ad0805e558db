"""The catalogue's rows, by area; pagetwin.conformance.properties puts them together."""
