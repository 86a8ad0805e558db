"""Prefix cache: is a hit sound, as long as it can be, and made of executed blocks only?"""

from collections.abc import Iterator

from pagetwin.conformance.checkers.waiting import WaitCheck
from pagetwin.conformance.facts import Entry, Facts, PlanFacts, ResultFacts
from pagetwin.conformance.ledger import Ledger
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.shadow import CacheShadow, Hit
from pagetwin.engine.trace import HeaderRecord, Record, RefuseRecord, ResetRecord


class CacheCheck:
    """Judges cache.equal-implies-hit, cache.partial-hit, cache.accounting,
    cache.last-token-recompute and cache.reset, and lets checkers/waiting.py judge admissions by
    what is cached when each is made. (cache.hit-implies-equal, what a hit's blocks hold, is judged
    by reading them: checkers/copy_on_write.py.)"""

    def __init__(self) -> None:
        self._cache: CacheShadow | None = None

    def __call__(self, record: Record, ledger: Ledger, facts: Facts) -> Iterator[Violation]:
        if self._cache is None:
            self._cache = CacheShadow(ledger.cache.block_size)
        cache = self._cache
        if isinstance(facts, PlanFacts):
            waiting = WaitCheck(facts, ledger, cache)
            for entry in facts.entries:
                yield from waiting.judge(entry)
                if entry.came_from == "waiting":
                    yield from _hit(entry, cache, ledger)
                elif entry.cached_tokens:
                    yield violation(
                        "cache.equal-implies-hit",
                        ledger.step,
                        "a hit outside an admission",
                        seq_id=entry.sequence.seq_id,
                        cached=entry.cached_tokens,
                    )
                cache.take(entry.change.taken)
        elif isinstance(facts, ResultFacts) and ledger.cache.enable_prefix_caching:
            for row in facts.rows:
                if not row.ended_before:
                    cache.enter(row)
        elif isinstance(record, ResetRecord):
            yield from _reset(record, cache, ledger)
        yield from _books(record, cache, ledger)


def _hit(entry: Entry, cache: CacheShadow, ledger: Ledger) -> Iterator[Violation]:
    request, size = entry.sequence.request, ledger.cache.block_size
    tokens, change = entry.introduced_tokens or (), entry.change
    usable = ledger.cache.enable_prefix_caching and (
        request.sampling_params.prompt_logprobs is None
    )
    possible = cache.lookup(request, tokens) if usable else Hit(())
    partial = entry.cached_tokens % size
    if change.hits != possible.blocks:
        yield violation(
            "cache.equal-implies-hit",
            ledger.step,
            "a hit is not the longest cached run",
            seq_id=entry.sequence.seq_id,
            hit=change.hits,
            possible=possible.blocks,
        )
    elif partial and (
        not ledger.cache.enable_partial_hits
        or (change.source, partial) != (possible.source, possible.num_partial)
    ):
        yield violation(
            "cache.partial-hit",
            ledger.step,
            "a partial hit is not the one that the cached blocks give",
            seq_id=entry.sequence.seq_id,
            hit=(change.source, partial),
            possible=(possible.source, possible.num_partial),
        )
    if entry.cached_tokens >= len(tokens) or entry.scheduled.num_scheduled_tokens < 1:
        yield violation(
            "cache.last-token-recompute",
            ledger.step,
            "an admission computes nothing",
            seq_id=entry.sequence.seq_id,
            cached=entry.cached_tokens,
            tokens=len(tokens),
        )


def _reset(record: ResetRecord, cache: CacheShadow, ledger: Ledger) -> Iterator[Violation]:
    held = ledger.holdings.num_free_blocks < ledger.cache.num_blocks - 1
    if record.done == held:
        yield violation(
            "cache.reset",
            ledger.step,
            "a reset did not tell the truth about held blocks",
            done=record.done,
            held=held,
        )
    if record.done:
        cache.clear()


def _books(record: Record, cache: CacheShadow, ledger: Ledger) -> Iterator[Violation]:
    if isinstance(record, HeaderRecord | RefuseRecord):
        return
    expected = {
        "num_cached_blocks": cache.num_cached,
        "evictions": cache.evictions,
        "prefix_queries": ledger.totals["prefix_queries"],
        "prefix_hit_tokens": ledger.totals["prefix_hit_tokens"],
        "partial_hits": ledger.totals["partial_hits"],
    }
    for name, value in expected.items():
        counted = getattr(record.counters, name)
        if counted != value:
            yield violation(
                "cache.accounting",
                ledger.step,
                f"{name} is not what the steps made",
                counted=counted,
                expected=value,
            )
