"""pagetwin verify explore: every schedule of a few requests on a tiny pool."""

from pathlib import Path
from typing import Annotated

import typer

ScopeNames = Annotated[
    list[str] | None,
    typer.Option("--scope", metavar="NAME", help="Only this scope; may be given several times."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Two requests, for seconds; not minutes.")]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the result and a finding's scenario go.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result, and only it, on standard output.")
]


def explore(
    *,
    quick: Quick = False,
    scope: ScopeNames = None,
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", help="Stop when they are over.")
    ] = 3600.0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Do all that may happen, in every state, on the engine and its twin; exits with 1 if anything
    is wrong, 3 if the budget ended first."""
    from pagetwin.commands.explore_run import run_exploration
    from pagetwin.engine.errors import ConfigError

    if not 0 < budget < float("inf"):
        raise ConfigError(f"--budget {budget} is not a positive number of seconds")
    code = run_exploration(
        "quick" if quick else "full", scope or [], budget_s=budget, out=out, as_json=as_json
    )
    raise typer.Exit(code)
