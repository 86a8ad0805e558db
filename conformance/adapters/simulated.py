"""`sim:`: the twin, a second implementation of docs/policy.md, as an engine under test."""

from collections.abc import Mapping
from typing import Any

from pagetwin.conformance.adapters.options import refuse_unknown
from pagetwin.conformance.adapters.without_model import WithoutModelAdapter
from pagetwin.simulator.replica import Replica


def make(target: str, options: Mapping[str, Any]) -> WithoutModelAdapter:
    """`sim:` takes neither a target nor options."""
    refuse_unknown("sim:", target, options)
    return WithoutModelAdapter("sim", Replica, is_the_twin=True)
