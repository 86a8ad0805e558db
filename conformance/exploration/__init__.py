"""Small-scope exploration: every schedule of a few requests on a tiny pool, engine beside twin."""
