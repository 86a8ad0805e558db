"""A paged-attention inference engine, its simulated twin, and what holds the two together."""
