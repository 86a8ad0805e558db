"""Recorded runs of an engine, kept small and read back."""
