"""Engines that are right, and the same engines with something changed in what they show."""

from collections.abc import Callable, Sequence

import pytest

from pagetwin.conformance.adapters.protocol import (
    Adapter,
    EngineInfo,
    Session,
    SessionConfig,
)
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.capability import Capabilities
from pagetwin.conformance.observation import AnyObservation
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget, Experiment
from pagetwin.engine.request import Request
from pagetwin.engine.trace import Record

Change = Callable[[SessionConfig, list[Request], Sequence[AnyObservation]], list[AnyObservation]]
"""From a session's configuration, its requests and what was seen, to what is shown."""


class ChangedSession:
    def __init__(self, inner: Session, config: SessionConfig, change: Change) -> None:
        self._inner = inner
        self._config = config
        self._change = change
        self._requests: list[Request] = []

    def submit(self, request: Request, *, cancel_after: int | None = None) -> None:
        self._requests.append(request)
        self._inner.submit(request, cancel_after=cancel_after)

    def cancel(self, request_id: str) -> None:
        self._inner.cancel(request_id)

    def run(self, timeout_s: float) -> None:
        self._inner.run(timeout_s)

    def observations(self) -> Sequence[AnyObservation]:
        return self._change(self._config, self._requests, self._inner.observations())

    def records(self) -> Sequence[Record]:
        records: Sequence[Record] = self._inner.records()  # type: ignore[attr-defined]
        return records

    def close(self) -> None:
        self._inner.close()


class ChangedAdapter:
    """An engine whose sessions show something else than what happened."""

    def __init__(self, inner: Adapter, change: Change) -> None:
        self._inner = inner
        self._change = change

    def describe(self) -> EngineInfo:
        return self._inner.describe()

    def capabilities(self) -> Capabilities:
        return self._inner.capabilities()

    def open(self, config: SessionConfig) -> ChangedSession:
        return ChangedSession(self._inner.open(config), config, self._change)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def fingerprint() -> Adapter:
    return make_adapter("fingerprint:")


@pytest.fixture
def changed() -> Callable[[Adapter, Change], Adapter]:
    """changed(adapter, change): the adapter with `change` applied to what it shows."""
    return ChangedAdapter


@pytest.fixture
def evidence_of() -> Callable[..., list[Evidence]]:
    """evidence_of(experiment, adapter, rounds=1, seed=0): what the experiment yields."""

    def run(
        experiment: Experiment, adapter: Adapter, *, rounds: int = 1, seed: int = 0
    ) -> list[Evidence]:
        budget = Budget(60.0, max_examples=rounds)
        return list(experiment.run(adapter, budget, seed))

    return run
