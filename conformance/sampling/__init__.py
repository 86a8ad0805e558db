"""Judging samplers: what is known of each draw, and pure judges over many."""
