"""What the command `pagetwin` understands, and how it ends: 0 good, 1 disagreement, 2 bad input.

A command is a function in a module of its own under pagetwin.commands, and a line here.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from pagetwin.commands.adapter_check import adapter_check
from pagetwin.commands.bench import bench
from pagetwin.commands.calibrate import calibrate
from pagetwin.commands.demo import demo
from pagetwin.commands.plan import plan
from pagetwin.commands.profile import profile
from pagetwin.commands.simulate import simulate
from pagetwin.commands.validate import validate
from pagetwin.commands.verify import verify
from pagetwin.commands.whatif import whatif
from pagetwin.engine.errors import PagetwinError

# Typer names only the subclass in public; this is the error of every wrong command line.
_UsageError: Any = typer.BadParameter.__mro__[1]

_INTERRUPTED = 130

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(adapter_check)
app.command()(demo)
app.command()(calibrate)
app.command()(validate)
app.command()(whatif)
app.command()(plan)
app.command()(profile)
app.command()(simulate)
app.add_typer(bench, name="bench")
app.add_typer(verify, name="verify")


@app.callback(invoke_without_command=True)
def pagetwin(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """A paged-attention inference engine, its simulated twin, and what holds them together."""
    if version:
        print(f"pagetwin {_version()}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name); returns the exit code."""
    try:
        code = app(args=arguments, prog_name="pagetwin", standalone_mode=False)
    except _UsageError as error:
        return _refuse(f"{error.format_message().rstrip('.')}; see 'pagetwin --help'")
    except PagetwinError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}")
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # Typer 0.27 makes this of the exception itself.
        print("pagetwin: interrupted; no result was written", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pagetwin")
    except PackageNotFoundError:
        return "(run from its sources, not installed)"


def _refuse(message: str) -> int:
    print(f"pagetwin: {' '.join(message.split())}", file=sys.stderr)
    return 2
