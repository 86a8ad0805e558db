"""Reads the profiles that come with this package: what was measured of a model on a GPU."""

from functools import cache
from pathlib import Path

from pagetwin.simulator.costs.profile import Profile, read_profile

DATA = Path(__file__).resolve().parents[1] / "data"


@cache
def committed_profiles() -> tuple[Profile, ...]:
    """All of them, by name of file."""
    return tuple(read_profile(path) for path in sorted(DATA.glob("*.profile.json")))
