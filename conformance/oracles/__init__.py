"""Oracles: independent sources of right values."""
