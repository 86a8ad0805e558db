"""How true the twin is: decisions, which must be equal, and times, which cannot be."""
