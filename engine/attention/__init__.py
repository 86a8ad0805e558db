"""Attention over the paged KV cache: what a step looks like, and who computes it."""
