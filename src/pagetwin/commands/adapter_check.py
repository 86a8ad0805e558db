"""pagetwin adapter-check: an adapter, tested before it is believed."""

from typing import Annotated

import typer


def adapter_check(
    engine: Annotated[str, typer.Argument(metavar="SPEC", help="As in verify --engine.")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings, and only them, as JSON.")
    ] = False,
) -> None:
    """Put an adapter's order, completeness and claims to the proof.

    Exits with 4, and says which, if a claim is not kept: what it shows cannot be relied on.
    """
    from contextlib import closing

    from pagetwin.commands.verify_run import quiet_engine
    from pagetwin.commands.writing import as_json_document
    from pagetwin.conformance.adapters.spec import make_adapter
    from pagetwin.conformance.suite.adapter_check import check_adapter

    findings = []
    with closing(make_adapter(engine)) as adapter, quiet_engine():
        for finding in check_adapter(adapter):
            findings.append(finding)
            if not as_json:
                detail = f": {finding.detail}" if finding.detail else ""
                print(f"{finding.status:<11} {finding.what}{detail}", flush=True)
    broken = sum(finding.status == "broken" for finding in findings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        print(as_json_document(rows).decode(), end="")
    else:
        print(f"{engine}: {len(findings)} checks, {broken} broken")
    raise typer.Exit(4 if broken else 0)
