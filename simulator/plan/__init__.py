"""The cheapest configuration that keeps its promises: a search over simulated clusters."""
