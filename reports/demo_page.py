"""What the demo's page says: its sentences, its figures, and the one HTML file made of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from markupsafe import Markup

from pagetwin.conformance.demo.result import DemoResult, Summary, explain
from pagetwin.reports.block_map_figure import NUM_COLOURS, block_map, drawable_end, owner_request
from pagetwin.reports.pages import render, styles
from pagetwin.reports.timeline_figure import Layer, Panel, step_scale, timeline


class Fact(NamedTuple):
    """A number with its name and what it means."""

    name: str
    value: int | str
    meaning: str


_EVENTS = (
    (
        "Preemptions by recompute",
        "preemptions_recompute",
        "A sequence gave up its blocks and computed its tokens again later.",
    ),
    (
        "Preemptions by swap",
        "preemptions_swap",
        "A sequence's blocks were copied to the host pool and back.",
    ),
    (
        "Tokens from the prefix cache",
        "prefix_hit_tokens",
        "Prompt tokens that were not computed, because another request had.",
    ),
    ("Full-block hits", "full_block_hits", "Whole cached blocks taken over and shared."),
    (
        "Partial hits",
        "partial_hits",
        "The first tokens of a cached block reused, by copying it.",
    ),
    ("Evictions", "evictions", "Cached blocks taken for new content."),
    (
        "Copy-on-write copies",
        "cow_copies",
        "Samples of one request parted ways inside a block they shared.",
    ),
    ("Aborts", "aborts", "Requests cancelled, waiting and running."),
)


def render_demo_page(result: DemoResult) -> str:
    """The whole page as one HTML document: no script, no file beside it, no network."""
    summary = result.summary
    last_step = result.steps[-1].step + 1 if result.steps else 1
    first_step = result.steps[0].step if result.steps else 0
    end = drawable_end(result.spans, last_step)
    scale = step_scale(first_step, end)
    request_index = {row.request_id: index for index, row in enumerate(result.requests)}
    drawn = {owner_request(span) for span in result.spans if span.first_step < end}
    drawn_requests = [row for row in result.requests if row.request_id in drawn]
    cut = f" Steps {first_step} to {end - 1} of {last_step - first_step} are drawn." * (
        end < last_step
    )
    return render(
        "demo.html.j2",
        css=styles("page.css"),
        highlight_css=_highlight_css([request_index[row.request_id] for row in drawn_requests]),
        summary=summary,
        verdict=verdict(summary),
        verdict_detail=_verdict_detail(summary),
        explanation=explain(result),
        twin_differences=_twin_differences(summary),
        facts=[Fact(name, getattr(summary, field), why) for name, field, why in _EVENTS],
        timeline_svg=timeline(result.steps, _panels(summary), scale),
        timeline_caption=_timeline_caption(summary) + cut,
        map_svg=block_map(result.spans, request_index, summary.cache.num_blocks, scale),
        map_caption=_map_caption(summary) + cut,
        drawn_requests=drawn_requests,
        request_index=request_index,
        num_colours=NUM_COLOURS,
        checks=result.checks,
        differences=result.differences,
        parity=result.parity,
        requests=result.requests,
        speed=_speed(summary),
        longest_phase=max([*summary.phases_s.values(), 1e-9]),
        command=result.command,
        environment=_environment(summary),
    )


def verdict(summary: Summary) -> str:
    """The run in one sentence."""
    if summary.agreed:
        return (
            "The engine, its twin and Hugging Face agree: "
            f"{summary.decisions_compared:,} decisions, {summary.block_tables_compared:,} block "
            f"tables and {summary.tokens_compared:,} greedy tokens, with no difference."
        )
    found = [
        _counted(count, one, many)
        for count, one, many in (
            (summary.decision_differences, "decision", "decisions"),
            (summary.block_table_differences, "block table", "block tables"),
            (summary.counter_differences, "counter", "counters"),
        )
        if count
    ]
    parts = []
    if found:
        parts.append(f"the engine and its twin differ in {' and '.join(found)}")
    if summary.token_mismatches:
        tokens = _counted(summary.token_mismatches, "token", "tokens")
        parts.append(f"the engine and Hugging Face differ in {tokens}")
    if summary.invariant_violations:
        count = _counted(summary.invariant_violations, "invariant is", "invariants are")
        parts.append(f"{count} broken")
    if not parts:
        return "No difference was found, but the run did not exercise everything it should."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _twin_differences(summary: Summary) -> int:
    return (
        summary.decision_differences + summary.block_table_differences + summary.counter_differences
    )


def _verdict_detail(summary: Summary) -> str:
    pool = summary.cache.num_blocks - 1
    near = (
        f" {_counted(summary.near_ties, 'token was a near tie', 'tokens were near ties')}."
        if summary.near_ties
        else ""
    )
    return (
        f"{summary.requests:,} requests went through {pool} KV blocks of "
        f"{summary.cache.block_size} tokens in {summary.steps:,} steps, with "
        f"{summary.preemptions_recompute + summary.preemptions_swap} preemptions. "
        f"{_invariants(summary)}{near}"
    )


def _invariants(summary: Summary) -> str:
    if not summary.invariant_violations:
        return f"All {summary.invariants_checked} invariants of its history hold."
    broken = _counted(summary.invariant_violations, "violation", "violations")
    return f"Its history shows {broken} of {summary.invariants_checked} invariants."


def _panels(summary: Summary) -> tuple[Panel, ...]:
    return (
        Panel(
            "KV blocks",
            130,
            (
                Layer("held-fill", lambda p: p.held_blocks),
                Layer("cached-fill", lambda p: p.cached_free_blocks),
                Layer("free-fill", lambda p: p.free_blocks),
            ),
        ),
        Panel(
            "Sequences",
            90,
            (
                Layer("running-fill", lambda p: p.running),
                Layer("swapped-fill", lambda p: p.swapped),
                Layer("waiting-fill", lambda p: p.waiting),
            ),
        ),
        Panel(
            "Tokens in the step",
            64,
            (
                Layer("decode-fill", lambda p: p.decode_tokens),
                Layer("prompt-fill", lambda p: p.prompt_tokens),
            ),
            limit=summary.scheduler.max_num_batched_tokens,
        ),
        Panel("Milliseconds", 50, (Layer("time-fill", lambda p: p.duration_s * 1000),)),
    )


def _timeline_caption(summary: Summary) -> str:
    return (
        "A full pool is normal: free blocks keep their content until it is needed elsewhere. "
        "When a running sequence needs a block and none is free, the least important one is "
        f"preempted. A step takes at most {summary.scheduler.max_num_batched_tokens} tokens "
        "(dashed line), so long prompts are computed in chunks between decode tokens."
    )


def _map_caption(summary: Summary) -> str:
    return (
        f"Blocks 1 to {summary.cache.num_blocks - 1}; block 0 is never used. The twin's tables "
        f"named the same blocks in all {summary.block_tables_compared:,} comparisons."
        if not summary.block_table_differences
        else f"Blocks 1 to {summary.cache.num_blocks - 1}, as the engine's tables name them."
    )


def _speed(summary: Summary) -> tuple[Fact, ...]:
    return (
        Fact(
            "Output tokens per second",
            f"{summary.output_tokens_per_s:,.1f}",
            f"{summary.output_tokens:,} tokens, over the seconds inside engine steps.",
        ),
        Fact("Median step", f"{summary.step_p50_ms:,.0f} ms", "Half of the steps were faster."),
        Fact(
            "95th percentile step",
            f"{summary.step_p95_ms:,.0f} ms",
            "Steps that carry prompt chunks take longest.",
        ),
        Fact("Whole demo", f"{summary.wall_s:,.0f} s", "All the parts below."),
    )


def _environment(summary: Summary) -> list[tuple[str, str]]:
    rows = [
        ("Model", summary.model),
        ("Trace", summary.trace),
        ("Seed", str(summary.seed)),
    ]
    rows += [(name.capitalize(), value) for name, value in summary.machine.items()]
    rows += [(name, value) for name, value in summary.versions.items()]
    for prefix, config in (("cache", summary.cache), ("scheduler", summary.scheduler)):
        settings: dict[str, Any] = msgspec.to_builtins(config)
        rows += [(f"{prefix}.{name}", _setting(value)) for name, value in settings.items()]
    return rows


def _setting(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value) or "none"


def _highlight_css(indices: Sequence[int]) -> Markup:
    """Pointing at a request, or at one of its blocks, fades the others. No script needed."""
    rules = (
        f".map:has(.r{i}:hover,.chip.r{i}:focus) .b:not(.r{i}) rect{{opacity:.1}}" for i in indices
    )
    return Markup("\n".join(rules))
