"""Finds the profile that comes with this package for a model on a GPU, if one was measured."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pagetwin.simulator.costs.datasheets import gpu_named
from pagetwin.simulator.costs.model_shape import shape_of
from pagetwin.simulator.costs.profile import Profile, read_profile

DATA = Path(__file__).resolve().parents[1] / "data"


def committed_profile(config: Mapping[str, Any], *, gpu: str, dtype: str) -> Profile | None:
    """Of a model of that shape, in that dtype, on one such GPU; None if there is none.

    Raises ConfigError or ModelError for a GPU or a config.json that is unknown.
    """
    shape, name = shape_of(config), gpu_named(gpu).name
    for profile in _all():
        subject = profile.subject
        is_same = (subject.dtype, gpu_named(subject.device).name) == (dtype, name)
        if is_same and shape_of(profile.model_config) == shape:
            return profile
    return None


@cache
def _all() -> tuple[Profile, ...]:
    return tuple(read_profile(path) for path in sorted(DATA.glob("*.profile.json")))
