"""Experiments: each drives an engine through sessions and yields evidence on properties."""
