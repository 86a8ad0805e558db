"""pagetwin verify faults: what the engine does when something under it goes wrong."""

from typing import Annotated

import typer

AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result, and only it, on standard output.")
]


def faults(
    *,
    engine: Annotated[
        str, typer.Option(metavar="SPEC", help="An engine with steps that one can drive.")
    ] = "fingerprint:",
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="PROPERTY",
            help="Only this kind, as fault.abort; may be given several times.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let each kind of fault strike an engine at every place, one run each; exits with 1 if it
    changes what others say, leaves anything behind, or ends without a word."""
    from contextlib import closing

    from pagetwin.commands.progress import terminal_progress
    from pagetwin.commands.verify_run import quiet_engine
    from pagetwin.commands.writing import as_json_document
    from pagetwin.conformance.adapters.spec import make_adapter
    from pagetwin.conformance.faults.campaign import Campaign, run_campaign, supported_kinds
    from pagetwin.engine.errors import ConfigError
    from pagetwin.reports.tables import Table

    reports = []
    with closing(make_adapter(engine)) as adapter, quiet_engine(), terminal_progress() as bars:
        there_are = supported_kinds(adapter)
        for name in kind or ():
            if name not in there_are:
                names = ", ".join(there_are) or "none"
                raise ConfigError(f"--kind {name!r}: the kinds that {engine} can show are {names}")
        kinds, campaign = kind or there_are, Campaign(adapter)
        for setting in campaign.settings():
            bars.begin(setting, len(kinds))
            for done, name in enumerate(kinds):
                bars.advance_to(done)
                reports.append(run_campaign(campaign, setting, name))
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
