"""Hypothesis profiles for the whole suite: `default`, and `thorough` for long searches."""

from hypothesis import HealthCheck, settings

_SLOW_GENERATORS = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "default",
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=_SLOW_GENERATORS,
)
settings.register_profile(
    "thorough", max_examples=2000, deadline=None, suppress_health_check=_SLOW_GENERATORS
)
settings.load_profile("default")
