"""The suite as pytest items: `pytest -p pagetwin --pagetwin-engine SPEC`.

One item for each property and engine. A pass is a pass; what an engine does not show is skipped,
with the reason; a waiver is an expected failure; too little evidence fails. All items of an engine
share one run, which the first of them makes: with pytest-xdist use `--dist loadgroup`.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    # Every pytest run of an environment loads this module: nothing heavy at import.
    from pagetwin.conformance.adapters.protocol import Adapter
    from pagetwin.conformance.suite.evidence import PropertyResult
    from pagetwin.conformance.suite.profiles import Profile
    from pagetwin.conformance.suite.result import SuiteResult

_RUNS = pytest.StashKey[list["EngineRun"]]()
COMPLETE = "run.complete"
"""Name of the item that fails where a run was cut short."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pagetwin", "conformance of inference engines")
    group.addoption(
        "--pagetwin-engine",
        action="append",
        default=[],
        metavar="SPEC",
        help="engine to verify, as in `pagetwin verify --engine`; may be given more than once",
    )
    group.addoption("--pagetwin-profile", default="default", metavar="NAME", help="properties")
    group.addoption(
        "--pagetwin-budget", type=float, default=120.0, metavar="SECONDS", help="for each engine"
    )
    group.addoption("--pagetwin-seed", type=int, default=0, metavar="N", help="draws examples")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "pagetwin: a property of an engine")
    config.addinivalue_line(
        "markers", "xdist_group(name): where pytest-xdist runs the items of an engine"
    )
    config.stash[_RUNS] = []


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With an engine and no paths, only the suite is run."""
    if not config.getoption("--pagetwin-engine"):
        return None
    named = config.args_source == pytest.Config.ArgsSource.ARGS
    return None if named else True


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    for spec in config.getoption("--pagetwin-engine"):
        items.extend(_items_of(session, config, spec))


def pytest_sessionfinish(session: pytest.Session) -> None:
    for run in session.config.stash.get(_RUNS, []):
        run.close()


class PropertyNotShown(Exception):
    """A property is violated, or there is too little evidence that it holds."""


class EngineRun:
    """The run that the items of one engine share."""

    def __init__(
        self, adapter: "Adapter", spec: str, profile: "Profile", *, budget_s: float, seed: int
    ) -> None:
        self.spec = spec
        self.profile = profile
        self._adapter = adapter
        self._budget_s = budget_s
        self._seed = seed
        self._result: SuiteResult | None = None

    def result(self) -> "SuiteResult":
        """Runs the suite the first time."""
        from pagetwin.conformance.suite.runner import RunOptions, SuiteRun

        if self._result is None:
            options = RunOptions(
                spec=self.spec, profile=self.profile, budget_s=self._budget_s, seed=self._seed
            )
            self._result = SuiteRun(self._adapter, options).run()
        return self._result

    def of(self, property_id: str) -> "PropertyResult":
        return next(one for one in self.result().results if one.property_id == property_id)

    def close(self) -> None:
        with suppress(OSError):
            self._adapter.close()


class PropertyItem(pytest.Item):
    """One property of one engine."""

    def __init__(self, *, run: EngineRun, property_id: str, **rest: Any) -> None:
        super().__init__(**rest)
        self._run = run
        self._property_id = property_id
        self.add_marker("pagetwin")
        self.add_marker(pytest.mark.xdist_group(run.spec))

    def runtest(self) -> None:
        if self._property_id == COMPLETE:
            result = self._run.result()
            if not result.complete:
                raise PropertyNotShown(f"the run is incomplete: {result.cut_short}")
            return
        one = self._run.of(self._property_id)
        self.user_properties += [
            ("status", one.status.value),
            ("examples", one.examples),
            ("goals", one.goals),
        ]
        if one.status == "unsupported":
            pytest.skip(f"unsupported: {one.reason}")
        if one.status == "waived":
            pytest.xfail(one.reason)
        if one.status != "pass":
            shown = "\n".join(map(str, one.violations))
            raise PropertyNotShown(f"{one.status.value}: {one.reason}\n{shown}".strip())

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, PropertyNotShown):
            from pagetwin.conformance.properties import CATALOGUE

            row = CATALOGUE.get(self._property_id)
            statement = f"{row.statement}\n" if row is not None else ""
            return f"{self._property_id} on {self._run.spec}\n{statement}{excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        # Not the bare name: pytest would take its dots for Python's, and show them as colons.
        return self.path, None, f"property {self.name}"


def _items_of(session: pytest.Session, config: pytest.Config, spec: str) -> Iterator[PropertyItem]:
    from pagetwin.conformance.adapters.spec import make_adapter
    from pagetwin.conformance.suite.profiles import find_profile
    from pagetwin.engine.errors import PagetwinError

    try:
        profile = find_profile(config.getoption("--pagetwin-profile"))
        adapter = make_adapter(spec)
    except PagetwinError as error:
        raise pytest.UsageError(str(error)) from None
    run = EngineRun(
        adapter,
        spec,
        profile,
        budget_s=config.getoption("--pagetwin-budget"),
        seed=config.getoption("--pagetwin-seed"),
    )
    config.stash[_RUNS].append(run)
    for name in (*(row.id for row in profile.properties), COMPLETE):
        item: PropertyItem = PropertyItem.from_parent(
            session, name=f"{name}[{spec}]", run=run, property_id=name
        )
        yield item
