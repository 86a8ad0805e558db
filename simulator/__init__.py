"""The discrete-event twin: an independent implementation of docs/policy.md in virtual time."""
