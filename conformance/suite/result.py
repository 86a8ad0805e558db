"""What a whole run says, and the exit code that it ends with."""

from collections import Counter
from enum import IntEnum

import msgspec

from pagetwin.conformance.adapters.protocol import EngineInfo
from pagetwin.conformance.capability import Flag, Level, Support
from pagetwin.conformance.suite.evidence import PropertyResult, Status

SCHEMA = "pagetwin.verification/1"


class ExitCode(IntEnum):
    """How `pagetwin verify` ends."""

    CLEAN = 0
    VIOLATION = 1
    USAGE = 2
    """Bad input: an unknown engine, a server that is dead or hangs, a damaged file."""
    NOT_ENOUGH_EVIDENCE = 3
    UNTRUSTWORTHY = 4
    """The harness itself, or the adapter, is not to be believed."""


class SuiteResult(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the suite over one engine."""

    schema: str = SCHEMA
    engine: EngineInfo
    spec: str
    capabilities: dict[Flag, Support]
    level: Level
    profile: str
    is_claim: bool
    seed: int
    budget_s: float
    seconds: float
    family_alpha: float
    """Chance that a run over a right engine raises any statistical alarm, at most."""
    complete: bool
    cut_short: str = ""
    """Why it is not complete."""
    adapter_lied: bool = False
    engine_broke: bool = False
    """The engine could not be reached or asked any more, which no property could have shown."""
    results: tuple[PropertyResult, ...]
    versions: dict[str, str] = {}

    @property
    def counts(self) -> Counter[Status]:
        return Counter(result.status for result in self.results)

    @property
    def exit_code(self) -> ExitCode:
        """What weighs most: a harness that is not to be believed, a violation, a broken engine,
        and last too little evidence."""
        counts = self.counts
        if self.adapter_lied or any(
            result.status == Status.ERROR and "cannot be trusted" in result.reason
            for result in self.results
        ):
            return ExitCode.UNTRUSTWORTHY
        if counts[Status.FAIL]:
            return ExitCode.VIOLATION
        if self.engine_broke:
            return ExitCode.USAGE
        if counts[Status.ERROR]:
            return ExitCode.UNTRUSTWORTHY
        lacking = counts[Status.VACUOUS] + counts[Status.UNDECIDED]
        if self.is_claim:
            lacking += counts[Status.UNSUPPORTED]
        judged = counts[Status.PASS] + counts[Status.WAIVED]
        if lacking or not self.complete or not judged:
            return ExitCode.NOT_ENOUGH_EVIDENCE
        return ExitCode.CLEAN
