"""`pagetwin validate`: a profile against recorded runs, decisions and times apart."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pagetwin.commands.writing import as_json_document, written_if_named

if TYPE_CHECKING:
    from pagetwin.conformance.fidelity.result import FidelityReport


def validate(
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="From `pagetwin calibrate`.")],
    histories: Annotated[
        list[Path],
        typer.Argument(metavar="HISTORY...", help="From `bench offline --record`, or compact."),
    ],
    *,
    leave_one_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-out",
            help="Judge each workload by a fit to the histories' others, not by PROFILE.",
        ),
    ] = False,
    own_launches: Annotated[
        bool,
        typer.Option(
            "--own-launches",
            help="Launch each run's steps as fast as it did: how far off is it for other reasons?",
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where the JSON goes.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON, and only it, on standard output.")
    ] = False,
) -> None:
    """Replay recorded decisions on the twin, then predict what each request saw.

    Decisions must be equal: exits with 1, and explains the first difference, if one is not. The
    error of times is stated with intervals, for each run.
    """
    from pagetwin.commands.progress import terminal_progress
    from pagetwin.conformance.fidelity.validate import validate as validated
    from pagetwin.simulator.costs.profile import read_profile

    read = read_profile(profile)
    with written_if_named(out) as place, terminal_progress() as progress:
        report = validated(
            read, histories, progress, leave_one_out=leave_one_out, own_launches=own_launches
        )
        document = as_json_document(report)
        if place is not None:
            place.write_bytes(document)
    if as_json:
        print(document.decode(), end="")
    else:
        _print(report)
    differences = [
        f"{name}: {judged.difference}"
        for name, judged in report.decisions.items()
        if judged.difference is not None
    ]
    if differences:
        print("\n".join(differences), file=sys.stderr)
        raise typer.Exit(1)


def _print(report: "FidelityReport") -> None:
    from pagetwin.reports.fidelity_table import decision_table, detail_table, fidelity_steps_table

    launches = "; launches as in each run itself" if report.own_launches else ""
    print(f"{report.profile}{launches}\n")
    print(decision_table([report]).text())
    print("\nwhat requests saw\n")
    print(detail_table([report]).text())
    print("\nstep times, the recorded decisions given\n")
    print(fidelity_steps_table([report]).text())
    for note in report.notes:
        print(f"\nnote: {note}")
