"""`pagetwin whatif`: a recorded run under other knobs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pagetwin.commands.writing import as_json_document, written_if_named

if TYPE_CHECKING:
    from pagetwin.simulator.costs.profile import Profile


def whatif(
    history: Annotated[
        Path, typer.Argument(metavar="HISTORY", help="From `bench offline --record`, or compact.")
    ],
    *,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KNOB=VALUE", help="A knob to change; several times."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Costs of steps. Default: fitted to the history itself."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="HISTORY",
            help="Recorded with the changed knobs: how far from it is what the twin predicts?",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where the JSON goes.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON, and only it, on standard output.")
    ] = False,
) -> None:
    """Run a recorded run's requests on the twin, as it was and with other knobs.

    Beside the measured figures stand the twin's with the same knobs: their difference is the error
    to expect of those with others.
    """
    from pagetwin.simulator.recordings.whatif import parse_changes, what_if

    changes = parse_changes(change or ())
    if against is not None:
        _judge(history, against, profile, changes, out, as_json=as_json)
        return
    from pagetwin.reports.whatif_table import as_document, whatif_table

    with written_if_named(out) as place:
        costs = _costs(profile, history)
        results = list(what_if(history, costs, changes))
        document = as_json_document(as_document(results, costs.label, changes))
        if place is not None:
            place.write_bytes(document)
    if as_json:
        print(document.decode(), end="")
        return
    print(f"{costs.label}; changed: {', '.join(f'{n}={v}' for n, v in changes.items())}\n")
    print(whatif_table(results).text())
    for result in results:
        for request_id, reason in list(result.changed.refused.items())[:3]:
            print(f"\n{result.label}: {request_id} would be refused: {reason}")


def _judge(
    history: Path,
    against: Path,
    profile: Path | None,
    changes: dict[str, str],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    from pagetwin.conformance.fidelity.whatif import judge_what_if
    from pagetwin.reports.fidelity_table import whatif_error_table

    with written_if_named(out) as place:
        costs = _costs(profile, history)
        results = judge_what_if(history, against, costs, changes)
        document = as_json_document(results)
        if place is not None:
            place.write_bytes(document)
    if as_json:
        print(document.decode(), end="")
    else:
        print(f"{costs.label}\n")
        print(whatif_error_table(results).text())


def _costs(profile: Path | None, history: Path) -> "Profile":
    """The file's, or fitted to the history itself."""
    from pagetwin.simulator.costs.calibration import calibrate
    from pagetwin.simulator.costs.profile import read_profile

    return calibrate([history]) if profile is None else read_profile(profile)
