"""What becomes of results of `pagetwin bench`: combined, stamped, kept, shown on a page."""

from pathlib import Path
from typing import Annotated

import typer

from pagetwin.commands.writing import as_json_document, written
from pagetwin.engine.errors import ConfigError

Baselines = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where the results are. Default: reports/baselines."),
]


def tables(
    page: Annotated[Path, typer.Argument(metavar="PAGE", help="The page to fill.")] = Path(
        "docs/performance.md"
    ),
    *,
    baselines: Baselines = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 if the page is stale.")
    ] = False,
) -> None:
    """Fill the tables of a page from committed results."""
    from pagetwin.reports.peers import BASELINES
    from pagetwin.reports.performance_page import filled

    before = page.read_text(encoding="utf-8")
    after = filled(before, baselines or BASELINES)
    if before == after:
        print(f"{page} agrees with the results")
    elif check:
        print(f"{page} does not agree with the results; run 'pagetwin bench tables {page}'")
        raise typer.Exit(1)
    else:
        with written(page) as place:
            place.write_text(after, encoding="utf-8")
        print(f"{page} has new tables")


def combine(
    results: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Results of bench offline.")
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the JSON of all goes.")],
) -> None:
    """Put offline results of several models into one file.

    They must be of the same machine, sources, versions and options.
    """
    from pagetwin.conformance.bench.combining import combined
    from pagetwin.conformance.bench.offline_result import OfflineReport
    from pagetwin.reports.results import decoded

    with written(out) as place:
        report = combined([decoded(path, OfflineReport) for path in results])
        place.write_bytes(as_json_document(report))
    print(f"{out}: {', '.join(report.models)} on {report.device}")


def stamp(
    results: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Results' JSON.")],
) -> None:
    """Name the commit in results that were measured away from the repository.

    A result has a digest of the sources that it was measured with; those here must be the same
    and committed.
    """
    from pagetwin.reports.stamping import stamped

    documents = [stamped(result) for result in results]
    for result, document in zip(results, documents, strict=True):
        with written(result) as place:
            place.write_bytes(document)


def peers(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="All that was measured of others in one session: engines, attention, ceilings.",
        ),
    ],
    *,
    device: Annotated[str, typer.Option(metavar="NAME", help="As its driver calls it.")],
    date: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="When it was.")],
    version: Annotated[
        list[str],
        typer.Option(metavar="NAME=VERSION", help="vllm, torch, triton, driver; several times."),
    ],
    origin: Annotated[
        str | None, typer.Option(metavar="TEXT", help="How it was measured. Default: as before.")
    ] = None,
    baselines: Baselines = None,
) -> None:
    """Keep measurements of other engines and kernels as a device's entry in peers.json.

    The entry replaces the one of the same device; those of other devices stay.
    """
    from pagetwin.reports.peer_files import Session, read_peers, what_did_not_run
    from pagetwin.reports.peers import BASELINES, PEERS, PeersFile, load_peers

    folder = baselines or BASELINES
    before = load_peers(folder) if (folder / PEERS).exists() else ()
    session = Session.of(device, date, version, origin or (before[-1].origin if before else ""))
    entry = read_peers(files, session)
    with written(folder / PEERS) as place:
        place.write_bytes(as_json_document(PeersFile(devices=before).replacing(entry)))
    print(
        f"{folder / PEERS}: {entry.engine} on {device}, {len(entry.rows)} rows, "
        f"{len(entry.attention)} attention cases"
    )
    for line in what_did_not_run(entry):
        print(line)


def compact(
    history: Annotated[Path, typer.Argument(metavar="HISTORY", help="JSON Lines, or .xz or .gz.")],
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: beside it, .compact.xz.")
    ] = None,
) -> None:
    """Keep a recorded history in a thousandth of its size.

    Times, requests and digests of the decisions remain; `calibrate`, `validate` and `whatif` read
    it as they read the whole, and run the twin to get the decisions back.
    """
    from pagetwin.simulator.recordings.compact import SUFFIX
    from pagetwin.simulator.recordings.reading import compact_file, is_compact

    place = out or history.with_name(history.name.partition(".jsonl")[0] + SUFFIX)
    if not is_compact(place):
        raise ConfigError(f"--out {place}: a compact history's name ends in {SUFFIX}")
    data = compact_file(history)
    with written(place) as path:
        path.write_bytes(data)
    print(f"{place}: {len(data):,} bytes")
