"""Faults: what the engine does when something under it, or beside it, goes wrong."""
