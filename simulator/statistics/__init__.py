"""How sure one may be of what simulated runs say: intervals, saturation, when to stop."""
