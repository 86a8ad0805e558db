"""What `pagetwin verify` does once its arguments are understood."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path

import msgspec

from pagetwin.commands.progress import BarProgress, NoProgress, terminal_progress
from pagetwin.commands.verify_files import RunFolder, with_exit_code
from pagetwin.commands.writing import as_json_document
from pagetwin.conformance.adapters.spec import make_adapter
from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.experiments.scenarios import fitted, play_and_judge, twin_differences
from pagetwin.conformance.history import header
from pagetwin.conformance.properties import Violation
from pagetwin.conformance.scenario import load_scenario
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Experiment
from pagetwin.conformance.suite.profiles import Profile
from pagetwin.conformance.suite.result import SuiteResult
from pagetwin.conformance.suite.runner import RunOptions, SuiteRun
from pagetwin.conformance.suite.shrinking import shrink_findings
from pagetwin.conformance.suite.waivers import Waiver, waive
from pagetwin.engine.trace import Record, read_history
from pagetwin.reports.verification_tables import property_table, scenario_rate, verdict

SHRINKING_S = 20.0
"""What a run may take at least, beyond its budget, to make what it found small."""


def run_verification(
    spec: str,
    profile: Profile,
    *,
    budget_s: float,
    seed: int,
    out: Path | None,
    waivers: Mapping[str, Waiver],
    as_json: bool,
) -> int:
    """Runs the suite, shows and writes what it says; returns the exit code.

    What goes to `out` grows with the run, so that a run that is killed leaves what it had. Raises
    AdapterError if there is no such engine, NotADirectoryError if `out` is a file.
    """
    folder = RunFolder(out)
    with closing(make_adapter(spec)) as adapter, quiet_engine(), terminal_progress() as bars:
        options = RunOptions(spec=spec, profile=profile, budget_s=budget_s, seed=seed)
        run = SuiteRun(adapter, options, listener=_Reporter(bars, folder))
        folder.begin(run.result())
        raw = run.run()
        if out is not None and raw.complete:
            shrink_findings(run.tallies, adapter, seconds=max(SHRINKING_S, budget_s / 4))
    files = folder.save_reproductions(run.tallies)
    result = _finished(raw, run.result(files), dict(waivers))
    folder.finish(result)
    if as_json:
        print(as_json_document(with_exit_code(result)).decode(), end="")
    else:
        print(property_table(result.results).text())
        print()
        print(verdict(result))
        if rate := scenario_rate(result):
            print(rate)
        if out is not None:
            print(f"The results are in {out}")
    return int(result.exit_code)


def replay_scenario(path: Path, spec: str, *, as_json: bool) -> int:
    """Plays one scenario on an engine; returns 1 if a property is violated, else 0.

    Raises TraceError if the file is no scenario, SessionRefused if the engine cannot be opened as
    it asks.
    """
    scenario = load_scenario(path)
    with closing(make_adapter(spec)) as adapter, quiet_engine():
        played = play_and_judge(fitted(scenario, adapter), adapter)
    return _show_violations(f"{path} on {spec}", played.records, played.violations, as_json)


def judge_history(path: Path, *, as_json: bool) -> int:
    """Judges a recorded history by every checker and by the twin; returns 1 on a violation, else 0.

    Raises TraceError, naming file and line, if it is no history or of another schema.
    """
    records = list(read_history(path))
    header(records)
    violations = [*check_all(records), *twin_differences(records)]
    return _show_violations(str(path), records, violations, as_json)


def _show_violations(
    what: str, records: Sequence[Record], violations: Sequence[Violation], as_json: bool
) -> int:
    if as_json:
        print(as_json_document(violations).decode(), end="")
    else:
        for one in violations:
            print(one)
        print(f"{what}: {len(records)} records, {len(violations)} violations")
    return int(bool(violations))


@contextmanager
def quiet_engine() -> Iterator[None]:
    """Keeps an engine's warnings off the terminal: tight pools make it give many."""
    logger = logging.getLogger("pagetwin")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Reporter:
    """Shows how a run goes on, and writes it down."""

    def __init__(self, bars: BarProgress | NoProgress, folder: RunFolder) -> None:
        self._bars = bars
        self._folder = folder
        self._examples = 0
        self._first = ""

    def begin(self, experiment: Experiment, seconds: float) -> None:
        self._examples, self._first = 0, experiment.judges[0]
        self._bars.begin(f"{experiment.id} ({seconds:.0f} s)", None)
        self._folder.note("begin", experiment=experiment.id, seconds=round(seconds, 3))

    def evidence(self, experiment: Experiment, piece: Evidence) -> None:
        if piece.property_id == self._first:
            self._examples += piece.examples
            self._bars.advance_to(self._examples)
        if piece.violation is not None:
            self._folder.note("violation", experiment=experiment.id, violation=piece.violation)

    def end(self, experiment: Experiment) -> None:
        self._bars.end()
        self._folder.note("end", experiment=experiment.id)


def _finished(raw: SuiteResult, result: SuiteResult, waivers: dict[str, Waiver]) -> SuiteResult:
    """The result with its files named and its waivers applied."""
    today = date.today()
    results = tuple(waive(one, waivers, today) for one in result.results)
    return msgspec.structs.replace(result, results=results, seconds=raw.seconds)
