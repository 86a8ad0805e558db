"""Hypothesis profiles for the whole suite, and tests that need a GPU where there is none.

Profiles are `default`, and `thorough` for long searches.
"""

from collections.abc import Sequence

import pytest
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


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skips, with the reason, what a machine without a GPU cannot run."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            reason = "needs a GPU: torch finds no CUDA device"
            for item in needing:
                item.add_marker(pytest.mark.skip(reason=reason))
