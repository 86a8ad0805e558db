"""The folder that a run of the suite leaves: a log that grows, and results at the end."""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pagetwin.commands.writing import as_json_document
from pagetwin.conformance.checkers.all import check_all
from pagetwin.conformance.scenario import save_scenario
from pagetwin.conformance.suite.result import SuiteResult
from pagetwin.conformance.suite.tally import Tally
from pagetwin.conformance.witness import tell
from pagetwin.engine.trace import HistoryWriter
from pagetwin.reports.scenario_figure import scenario_figure
from pagetwin.reports.verification_files import junit_xml, summary_markdown

SCHEMA = "pagetwin.run/1"
RESULTS = ("results.json", "results.jsonl", "junit.xml", "summary.md")
REPRODUCTIONS = "repro"


def with_exit_code(result: SuiteResult) -> dict[str, Any]:
    """What is written and printed as JSON: the result, and how the command ends by it."""
    return {**msgspec.to_builtins(result), "exit_code": int(result.exit_code)}


class RunFolder:
    """Files of one run in `folder`; None for a run that leaves nothing.

    run.jsonl is written as the run goes. All others appear whole, at its end. Raises
    NotADirectoryError if `folder` is a file.
    """

    def __init__(self, folder: Path | None) -> None:
        if folder is not None and folder.exists() and not folder.is_dir():
            raise NotADirectoryError(20, "is a file; name a folder", str(folder))
        self._folder = folder
        self._begun = time.monotonic()

    def begin(self, result: SuiteResult) -> None:
        """Makes the folder, and starts its log with what is about to be run.

        What an earlier run left there would pass for this one's, should this one be killed or find
        nothing: its files are removed.
        """
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if (self._folder / "run.jsonl").exists():
            for name in RESULTS:
                (self._folder / name).unlink(missing_ok=True)
            if (self._folder / REPRODUCTIONS).is_dir():
                shutil.rmtree(self._folder / REPRODUCTIONS)
        (self._folder / "run.jsonl").write_bytes(b"")
        self.note(
            "run",
            schema=SCHEMA,
            spec=result.spec,
            engine=result.engine,
            profile=result.profile,
            seed=result.seed,
            budget_s=result.budget_s,
            versions=result.versions,
        )

    def note(self, kind: str, **facts: Any) -> None:
        """Appends one line to the log."""
        if self._folder is not None:
            line = {"kind": kind, "at_s": round(time.monotonic() - self._begun, 3), **facts}
            with (self._folder / "run.jsonl").open("ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")

    def save_reproductions(self, tallies: Mapping[str, Tally]) -> dict[str, str]:
        """Writes the scenario of each property's first violation, its history, and that history
        in words and as a picture; returns the scenario's path by property id."""
        files: dict[str, str] = {}
        if self._folder is None:
            return files
        for property_id, tally in tallies.items():
            if tally.scenario is None:
                continue
            place = self._folder / REPRODUCTIONS / property_id
            place.mkdir(parents=True, exist_ok=True)
            save_scenario(tally.scenario, place / "scenario.json")
            with HistoryWriter(place / "history.jsonl") as history:
                for record in tally.records:
                    history.write(record)
            if tally.records:
                found = [o for o in check_all(tally.records) if o.property_id == property_id]
                (place / "witness.txt").write_text(tell(tally.records, found))
                (place / "timeline.svg").write_text(scenario_figure(tally.records, found))
            files[property_id] = str(place / "scenario.json")
        return files

    def finish(self, result: SuiteResult) -> None:
        """Writes results.json, results.jsonl, junit.xml and summary.md."""
        if self._folder is None:
            return
        lines = [msgspec.json.encode(one) + b"\n" for one in result.results]
        contents = (
            as_json_document(with_exit_code(result)),
            b"".join(lines),
            junit_xml(result),
            summary_markdown(result).encode(),
        )
        for name, content in zip(RESULTS, contents, strict=True):
            self._write(self._folder / name, content)
        counts = {status.value: count for status, count in result.counts.items()}
        self.note("result", complete=result.complete, cut_short=result.cut_short, counts=counts)

    def _write(self, path: Path, content: bytes) -> None:
        """Under its name only when it is whole."""
        beside = path.with_name(f".{path.name}.part")
        beside.write_bytes(content)
        os.replace(beside, path)
