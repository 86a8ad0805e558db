"""`pagetwin calibrate`: from measured steps to a cost model, with the error it makes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pagetwin.commands.writing import as_json_document, written

if TYPE_CHECKING:
    from pagetwin.simulator.costs.profile import Profile


def calibrate(
    histories: Annotated[
        list[Path],
        typer.Argument(metavar="HISTORY...", help="From `bench offline --record`, or compact."),
    ],
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="Where the profile goes.")
    ] = Path("profile.json"),
    workload: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Fit to runs of this one only, and judge by the others; several times. `probe` is "
            "what --probe recorded.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the profile, and only it, on standard output.")
    ] = False,
) -> None:
    """Fit the simulator's cost model to recorded steps of the engine.

    Says for each workload how far off the model is when it is fitted to the others alone.
    """
    from pagetwin.simulator.costs.calibration import calibrate as calibrated

    with written(out) as path:
        profile = calibrated(histories, workload or ())
        document = as_json_document(profile)
        path.write_bytes(document)
    if as_json:
        print(document.decode(), end="")
    else:
        _print(profile)
        print(f"\nThe profile is {out}")


def _print(profile: "Profile") -> None:
    from pagetwin.reports.profile_table import cross_validation_table, terms_table

    print(f"{profile.label}\n")
    print(terms_table(profile).text())
    if profile.cross_validation:
        print("\nworkloads that the fit did not see\n")
        print(cross_validation_table(profile).text())
    else:
        print("\none workload only: nothing is left to validate on")
