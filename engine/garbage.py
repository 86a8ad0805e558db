"""Keeps Python's garbage collections short while an engine serves."""

import gc
from functools import cache


@cache
def leave_imports_out_of_collections() -> None:
    """From now on, collections pass over all that is there, modules above all, which stay for ever.

    After importing torch and Triton a full collection goes through 200,000 objects and takes
    150 ms, as long as twenty steps, and comes in the midst of serving. Done once in a process:
    what is made later, engines among it, is collected as ever.
    """
    gc.collect()
    gc.freeze()
