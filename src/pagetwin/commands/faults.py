"""pagetwin verify faults: what the engine does when something under it goes wrong."""

from typing import Annotated

import typer

AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result, and only it, on standard output.")
]


def faults(
    *,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="NAME", help="Only this kind; may be given several times."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let each kind of fault strike our engine at every place, one run each; exits with 1 if it
    changes what others say, leaves anything behind, or ends without a word."""
    from pagetwin.commands.progress import terminal_progress
    from pagetwin.commands.verify_run import quiet_engine
    from pagetwin.commands.writing import as_json_document
    from pagetwin.conformance.faults.campaign import CAMPAIGN, run_campaign
    from pagetwin.conformance.faults.lab import settings
    from pagetwin.engine.errors import ConfigError
    from pagetwin.reports.tables import Table

    for name in kind or ():
        if name not in CAMPAIGN:
            raise ConfigError(f"--kind {name!r} is not known; the kinds are {', '.join(CAMPAIGN)}")
    kinds, reports = kind or list(CAMPAIGN), []
    with quiet_engine(), terminal_progress() as bars:
        for setting in settings():
            bars.begin(setting.name, len(kinds))
            for done, name in enumerate(kinds):
                bars.advance_to(done)
                reports.append(run_campaign(setting, name))
    if as_json:
        print(as_json_document(reports).decode(), end="")
    else:
        rows = [
            (one.kind, one.setting, *map(str, (one.runs, one.struck, one.hit, len(one.broken))))
            for one in reports
        ]
        columns = ("fault", "setting", "runs", "struck", "ended by it", "broken")
        print(Table(columns, rows, num_left=2).text())
        for one in reports:
            for what in one.broken[:3]:
                print(f"{one.setting}: {what}")
    raise typer.Exit(int(any(one.broken for one in reports)))
