"""Mutants: known bugs of serving engines, planted one at a time to prove what the suite sees."""
