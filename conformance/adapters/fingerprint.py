"""`fingerprint:`: the engine's scheduler over the executor without a model."""

from collections.abc import Mapping
from typing import Any

from pagetwin.conformance.adapters.options import refuse_unknown
from pagetwin.conformance.adapters.without_model import WithoutModelAdapter
from pagetwin.engine.scheduler import Scheduler


def make(target: str, options: Mapping[str, Any]) -> WithoutModelAdapter:
    """`fingerprint:` takes neither a target nor options."""
    refuse_unknown("fingerprint:", target, options)
    return WithoutModelAdapter("fingerprint", Scheduler)
