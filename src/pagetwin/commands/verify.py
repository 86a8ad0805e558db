"""pagetwin verify: the conformance suite over any engine."""

from pathlib import Path
from typing import Annotated

import typer

from pagetwin.commands.explore import explore
from pagetwin.commands.faults import faults
from pagetwin.commands.verify_mutants import mutants

verify = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Hold an engine against the catalogue of properties.",
)

verify.command()(mutants)

Engine = Annotated[
    str,
    typer.Option(
        metavar="SPEC",
        help="fingerprint:, sim:, pagetwin:MODEL?{json}, py:MODULE:FACTORY, cmd:COMMAND, ...",
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where results and reproductions go.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the result, and only it, on standard output.")
]

verify.command()(explore)
verify.command()(faults)


@verify.callback(invoke_without_command=True)
def verify_engine(
    context: typer.Context,
    *,
    engine: Engine = "",
    profile: Annotated[
        str, typer.Option(metavar="NAME", help="Which properties; 'pagetwin verify list' says.")
    ] = "default",
    budget: Annotated[
        float, typer.Option(metavar="SECONDS", help="Shared out over the experiments.")
    ] = 300.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws the examples.")] = 0,
    out: Out = None,
    waivers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML: failures somebody signed for.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Exits with 0 if all is well, 1 on a violation, 2 on bad input or a dead engine, 3 without
    enough evidence, 4 if the harness or the adapter is not to be trusted."""
    if context.invoked_subcommand is not None:
        return
    from pagetwin.commands.verify_run import run_verification
    from pagetwin.conformance.suite.profiles import find_profile
    from pagetwin.conformance.suite.waivers import read_waivers
    from pagetwin.engine.errors import ConfigError

    if not engine:
        raise ConfigError("no engine is named; give --engine SPEC, as in --engine fingerprint:")
    if not 0 < budget < float("inf"):
        raise ConfigError(f"--budget {budget} is not a positive number of seconds")
    code = run_verification(
        engine,
        find_profile(profile),
        budget_s=budget,
        seed=seed,
        out=out,
        waivers=read_waivers(waivers) if waivers is not None else {},
        as_json=as_json,
    )
    raise typer.Exit(code)


@verify.command("list")
def list_catalogue(
    *,
    as_json: AsJson = False,
) -> None:
    """Print every property: id, level, what it needs, what it says."""
    from pagetwin.commands.writing import as_json_document
    from pagetwin.conformance.properties import CATALOGUE
    from pagetwin.conformance.suite.profiles import PROFILES

    if as_json:
        print(as_json_document(list(CATALOGUE.values())).decode(), end="")
        return
    for row in CATALOGUE.values():
        print(f"{row.id}  [{row.level.label}]  {row.statement}")
    print()
    for profile in PROFILES.values():
        print(f"profile {profile.name}: {profile.what} ({len(profile.properties)} properties)")


@verify.command()
def replay(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario file.")],
    *,
    engine: Engine,
    as_json: AsJson = False,
) -> None:
    """Play one scenario on an engine and judge it; exits with 1 on a violation."""
    from pagetwin.commands.verify_run import replay_scenario

    raise typer.Exit(replay_scenario(scenario, engine, as_json=as_json))


@verify.command()
def judge(
    history: Annotated[Path, typer.Argument(metavar="HISTORY", help="A history file (.jsonl).")],
    *,
    as_json: AsJson = False,
) -> None:
    """Judge a recorded history, of whatever machine; exits with 1 on a violation."""
    from pagetwin.commands.verify_run import judge_history

    raise typer.Exit(judge_history(history, as_json=as_json))
