"""Tests of randomness with stated error rates: pure functions of counts and probabilities."""
