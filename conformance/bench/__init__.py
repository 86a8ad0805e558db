"""Measures kernels and whole engines on fixed work; what it finds is plain data."""
