"""`pagetwin demo`: engine, twin and Hugging Face on one workload, with a page that says so."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the report goes.")] = Path("out"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary, and only it, on standard output.")
    ] = False,
    requests: Annotated[
        int, typer.Option(metavar="N", help="How many requests to take from the trace.")
    ] = 32,
    model: Annotated[
        str, typer.Option(metavar="NAME_OR_PATH", help="A name, a folder or a .gguf file.")
    ] = "SmolLM2-135M-Instruct",
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Azure CSV or Mooncake JSONL; else the one built in."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Draws texts, samples, priorities.")] = 0,
) -> None:
    """Run a real model under memory pressure; check every decision and every token.

    Writes report.html, summary.json and history.jsonl. Exits with 1, and explains the first
    difference, if anything disagrees.
    """
    from pagetwin.conformance.demo.options import DemoOptions

    options = DemoOptions(model=model, trace=trace, num_requests=requests, seed=seed)
    # After the options: what is wrong with them is said before torch is loaded.
    from transformers.utils import logging

    from pagetwin.commands.progress import terminal_progress
    from pagetwin.commands.writing import as_json_document
    from pagetwin.conformance.demo.result import explain
    from pagetwin.conformance.demo.run import run_demo
    from pagetwin.reports.demo_page import render_demo_page, verdict
    from pagetwin.reports.staging import staged

    # Transformers would draw its own, terminal or not.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with staged(out) as folder:
        with terminal_progress() as progress:
            result = run_demo(options, folder / "history.jsonl", progress)
        summary_json = as_json_document(result.summary)
        (folder / "summary.json").write_bytes(summary_json)
        (folder / "report.html").write_text(render_demo_page(result), encoding="utf-8")
    if as_json:
        print(summary_json.decode(), end="")
    else:
        print(verdict(result.summary))
        print(f"The report is {out / 'report.html'}")
    problem = explain(result)
    if problem is not None:
        print(problem, file=sys.stderr)
        raise typer.Exit(1)
