"""`pagetwin verify mutants`: the suite's own trial, on an engine with known bugs planted in it."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pagetwin.commands.writing import as_json_document
from pagetwin.engine.errors import ConfigError

if TYPE_CHECKING:
    from pagetwin.conformance.mutants.mutant import Mutant

SURVIVED = 4
"""Exit code: the harness is not to be trusted."""


def mutants(
    *,
    seeds: Annotated[int, typer.Option(metavar="N", help="Streams of examples for each.")] = 20,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A mutant, or a family such as cache; several times."),
    ] = None,
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", help="Processor seconds for each mutant and seed.")
    ] = 60.0,
    control: Annotated[
        int, typer.Option(metavar="N", help="Examples of each trial and seed on the clean engine.")
    ] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the matrix, and only it, on standard output.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where mutants.json and mutants.md go.")
    ] = None,
) -> None:
    """Plant known bugs, one at a time, and show which property notices each, and how soon.

    Exits with 4 if a mutant survives, if one that is said to be equivalent does not, or if the
    clean engine is accused.
    """
    if seeds < 1 or budget <= 0 or control < 0:
        raise ConfigError(
            f"seeds={seeds}, budget={budget:g}, control={control}: give at least 1 seed, more than "
            "0 seconds, and no negative number of examples"
        )
    chosen = _chosen(only or [])
    from pagetwin.conformance.mutants.kill import run_kills
    from pagetwin.reports.mutants_page import render_mutants_page, terminal_row, verdict
    from pagetwin.reports.staging import staged

    # Thousands of tiny pools: each sequence that outgrows one would be warned of.
    logging.getLogger("pagetwin").setLevel(logging.ERROR)
    stream = sys.stderr if as_json else sys.stdout
    matrix = run_kills(
        chosen,
        num_seeds=seeds,
        budget_s=budget,
        control_examples=control,
        on_row=lambda row: print(terminal_row(row), file=stream, flush=True),
    )
    if out is not None:
        with staged(out) as folder:
            (folder / "mutants.json").write_bytes(as_json_document(matrix))
            (folder / "mutants.md").write_text(render_mutants_page(matrix), encoding="utf-8")
    if as_json:
        print(as_json_document(matrix).decode(), end="")
    print(verdict(matrix), file=stream)
    false_claims = [one.id for one in matrix.mutants if one.equivalent and one.seeds_killed]
    if matrix.survivors or matrix.false_alarms or false_claims:
        raise typer.Exit(SURVIVED)


def _chosen(only: list[str]) -> "list[Mutant]":
    """Those whose id or family was named; all if none was."""
    from pagetwin.conformance.mutants.catalogue import MUTANTS

    known = {one.id for one in MUTANTS} | {one.family for one in MUTANTS}
    unknown = [name for name in only if name not in known]
    if unknown:
        families = ", ".join(dict.fromkeys(one.family for one in MUTANTS))
        raise ConfigError(
            f"--only {unknown[0]}: there is no such mutant; name one by its id (as "
            f"{MUTANTS[0].id}), or a family: {families}"
        )
    return [one for one in MUTANTS if not only or one.id in only or one.family in only]
