"""Checkers: pure functions from a history to the violations that it shows."""
