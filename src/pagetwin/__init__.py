"""A paged-attention inference engine, its simulated twin, and the harness that holds them together."""
