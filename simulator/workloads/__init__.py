"""What a simulated cluster is asked to serve: generated or recorded, seeded, streaming."""
