"""Adapters: one small class for each kind of engine, behind one protocol."""
