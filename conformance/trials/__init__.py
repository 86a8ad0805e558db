"""Trials: parts of the engine, each run on random examples and judged by what it must do."""
