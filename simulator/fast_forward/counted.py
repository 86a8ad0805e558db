"""Decides what a replica does in runs where no two sequences share anything and memory suffices.

Most of a serving run is like that: requests come, prefill, decode and go. Then a sequence is
known by a few numbers: its block table, and the decode step (counted since the start) in which it
ends. None of them is touched between its prefill and its end but to take a block: steps that only
decode are done many at a time (`counted_batch`), and only the others are planned (`mixed_step`).
What this cannot do (`countable`) is said before it has happened, and the plain replica goes on from
there (`fast_forward.handover`).
"""

from bisect import insort
from collections import deque
from collections.abc import Callable

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters
from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cost_model import CostModel
from pagetwin.simulator.fast_forward.counted_batch import CountedBatch
from pagetwin.simulator.fast_forward.counted_pool import CountedPool, opening
from pagetwin.simulator.fast_forward.counted_sequence import CountedSequence
from pagetwin.simulator.fast_forward.ending import Ending
from pagetwin.simulator.fast_forward.mixed_step import MixedStep, mixed_composition, plan_mixed
from pagetwin.simulator.limits import blocks_for
from pagetwin.simulator.step_clock import alone_ticks
from pagetwin.simulator.timings import Census, RequestTimings
from pagetwin.simulator.token_gaps import TokenGaps

Deliver = Callable[[int, RequestTimings], None]
"""Takes the number of a request, in the order of submission, and its timings."""


class CountedReplica:
    """A replica by numbers: first come, first served, synchronous, nothing shared.

    `now` is the start of the step under way, which is not planned yet, or the end of the last.
    """

    def __init__(
        self,
        cache: CacheConfig,
        scheduler: SchedulerConfig,
        cost_model: CostModel,
        deliver: Deliver,
        on_first_token: Callable[[str, int], None] | None = None,
    ) -> None:
        self.cache = cache
        self.scheduler = scheduler
        self.block_size = cache.block_size
        self.pool = CountedPool(cache.num_blocks, enable_prefix_caching=cache.enable_prefix_caching)
        self.now = 0
        self.busy_ticks = 0
        self.last_end = 0
        """Tick at which the last step ended."""
        self.census = Census()
        self.live: dict[str, CountedSequence] = {}
        self.waiting: deque[CountedSequence] = deque()
        self.late: list[CountedSequence] = []
        """Submitted during the step under way: its plan does not see them."""
        self.prefilling: CountedSequence | None = None
        """The one whose prompt is computed in part; nobody is admitted behind it."""
        self.batch = CountedBatch(cache.block_size, scheduler.num_lookahead_slots, cost_model)
        self.num_submitted = 0
        self.num_finished = 0
        self.num_prefix_queries = 0
        self._cost_model = cost_model
        self._deliver = deliver
        self._on_first_token = on_first_token
        self.gaps: TokenGaps | None = None
        """To be set by whoever wants the gaps between tokens counted."""
        self.num_promised_blocks = 0
        """What those who are there hold when they end."""
        self.may_admit = False
        """Whether the first that waits may find room; what it lacks comes with an end only."""

    def submit(self, request: Request, now: int, ending: Ending) -> None:
        """Adds a request at tick `now`, up to which it has advanced."""
        start = None
        if self.cache.enable_prefix_caching:
            start = opening(request)
            self.pool.openings.add(start)
        seq = CountedSequence(request, self.num_submitted, now, ending, start)
        self.num_submitted += 1
        longest = seq.num_prompt_tokens + seq.num_output_tokens - 1
        self.num_promised_blocks += blocks_for(longest, self.cache, self.scheduler)
        self.live[request.request_id] = seq
        if self.batch.heap or self.prefilling is not None or self.waiting:
            if self.now < now:
                self.late.append(seq)
                return
        else:
            self.now = max(self.now, now)
        self._queue(seq)

    def counters(self) -> Counters:
        """The books, between steps."""
        self.pool.account()
        num_cached = self.pool.num_cached_free
        if self.cache.enable_prefix_caching:
            num_cached += sum(
                seq.num_computed(self.num_steps) // self.block_size for seq in self.running
            )
        return Counters(
            num_waiting=len(self.waiting) + len(self.late),
            num_running=len(self.running),
            num_free_blocks=self.pool.num_free(),
            num_cached_blocks=num_cached,
            num_free_host_blocks=self.cache.num_host_blocks,
            prefix_queries=self.num_prefix_queries,
            evictions=self.pool.num_evictions,
            finished=self.num_finished,
        )

    @property
    def has_room_for_all(self) -> bool:
        """Whether blocks cannot be short before somebody else comes."""
        return self.num_promised_blocks < self.cache.num_blocks

    @property
    def running(self) -> list[CountedSequence]:
        """In running order."""
        rows = self.batch.rows
        return rows if self.prefilling is None else [*rows, self.prefilling]

    @property
    def num_steps(self) -> int:
        """Done since the start."""
        return self.batch.num_steps

    def advance(self, until: int | None, through: int | None = None) -> bool:
        """Does the steps that end before tick `until` (None: all of them).

        With `through` the one under way at `until` as well, if it only decodes and ends before
        `through`: for a caller who knows that what comes at `until` does not touch it, and that
        nothing else comes before `through`. False if the step that begins at `now` is beyond it:
        blocks are short.
        """
        while until is None or self.now < until:
            if self.is_about_to_prefill():
                step = self.plan_mixed()
                if step is None:
                    return False
                if not step.prefills and self.batch.heap:
                    self.may_admit = False
                    continue  # nobody fits: they decode on
                if not self._do_mixed(step, until):
                    return True
            elif self.batch.heap:
                num_steps, duration = self.decode_steps(until, through)
                if num_steps == 0:
                    return True
                if not self._decode(num_steps, duration):
                    return False
            else:
                return True
        return True

    def is_about_to_prefill(self) -> bool:
        """Whether the next step does more than decode, unless nobody fits."""
        return self.prefilling is not None or (self.may_admit and len(self.waiting) > 0)

    def _queue(self, seq: CountedSequence) -> None:
        self.census.enter(seq.submitted)
        waiting = self.waiting
        if not waiting or seq.key < waiting[0].key:
            self.may_admit = True
        if waiting and seq.key < waiting[-1].key:
            insort(waiting, seq, key=_key)
        else:
            waiting.append(seq)

    def _end_step(self) -> None:
        """Those who came during the step are seen from now on."""
        for seq in self.late:
            self._queue(seq)
        self.late.clear()

    # Steps that only decode.

    def decode_steps(self, until: int | None, through: int | None) -> tuple[int, int]:
        """How many steps to do, and their ticks: as `advance` says, at most to the first that
        ends a sequence, or to the end of the one under way if somebody came during it."""
        left = None if until is None else until - self.now
        if self.late:
            first = self.batch.first_ticks()
            return (1, first) if left is None or first < left else (0, 0)
        return self.batch.steps_within(left, None if through is None else through - self.now)

    def _decode(self, num_steps: int, duration: int) -> bool:
        """False if blocks are short; those before the shortage are done."""
        batch, pool = self.batch, self.pool
        suffice = batch.steps_without_shortage(num_steps, pool.num_free())
        is_short = suffice < num_steps
        if is_short:
            num_steps, duration = suffice, batch.duration(suffice)
        if num_steps > 0:
            if self.gaps is not None:
                growth = batch.line().slope * len(batch)
                self.gaps.line(batch.first_ticks(), growth, num_steps, len(batch))
            batch.take_blocks(num_steps, pool)
            self._pass(num_steps, duration)
            for seq in batch.pop_ended():
                self._finish(seq)
            if self.late:
                self._end_step()
        return not is_short

    def _pass(self, num_steps: int, duration: int) -> None:
        """Those steps are over."""
        self.now += duration
        self.busy_ticks += duration
        self.last_end = self.now
        self.batch.advance(num_steps)

    def _finish(self, seq: CountedSequence) -> None:
        num_computed = seq.num_prompt_tokens + seq.num_output_tokens - 1
        num_full = num_computed // self.block_size
        self.pool.release(seq.block_table, num_full, seq.request, seq.opening)
        self.num_finished += 1
        self.num_promised_blocks -= len(seq.block_table)
        self.may_admit = True
        request_id, count, now = seq.request.request_id, seq.num_output_tokens, self.now
        del self.live[request_id]
        self.census.leave(now, seq.submitted)
        self._deliver(
            seq.number,
            RequestTimings(
                request_id=request_id,
                arrival_ticks=to_ticks(seq.request.arrival_s),
                first_scheduled_ticks=seq.first_scheduled,
                first_token_ticks=seq.first_token,
                finish_ticks=now,
                num_output_tokens=count,
                longest_output=count,
                finish_reasons=seq.ending,
            ),
        )

    # Steps that prefill.

    def plan_mixed(self) -> MixedStep | None:
        """The next step, nothing changed; None if blocks are short."""
        num_free = self.pool.num_free()
        return plan_mixed(
            self.cache, self.scheduler, self.batch, self.prefilling, self.waiting, num_free
        )

    def mixed_ticks(self, step: MixedStep) -> int:
        """What the step takes."""
        return alone_ticks(self._cost_model, mixed_composition(step, self.batch))

    def _do_mixed(self, step: MixedStep, until: int | None) -> bool:
        """False, and nothing changed, if the step does not end before `until`."""
        duration = self.mixed_ticks(step)
        if until is not None and self.now + duration >= until:
            return False
        # Who did not fit beside the others may fit behind them.
        self.may_admit = step.prefills
        batch, start = self.batch, self.now
        if self.gaps is not None and batch.heap:
            self.gaps.line(duration, 0, 1, len(batch))
        batch.take_blocks(1, self.pool)
        joined: list[CountedSequence] = []
        chunk = step.chunk
        if chunk is not None:
            chunk.block_table += self.pool.take(step.num_chunk_blocks)
            chunk.num_computed_tokens += step.num_chunk_tokens
            joined.append(chunk)
            self.prefilling = None
        for one in step.admitted:
            seq = self.waiting.popleft()
            seq.block_table = self.pool.take(one.num_blocks)
            seq.num_computed_tokens = one.num_tokens
            seq.first_scheduled = start
            if self._looks_up(seq.request):
                self.num_prefix_queries += seq.num_prompt_tokens
            joined.append(seq)
        self._pass(1, duration)
        for seq in batch.pop_ended():
            self._finish(seq)
        for seq in joined:
            if seq.num_computed_tokens < seq.num_prompt_tokens:
                self.prefilling = seq
            else:
                self._join(seq)
        if self.late:
            self._end_step()
        return True

    def _join(self, seq: CountedSequence) -> None:
        """Its prompt is computed: it has its first token, and decodes unless that was the last."""
        seq.first_token = self.now
        if self._on_first_token is not None:
            self._on_first_token(seq.request.request_id, self.now)
        if seq.num_output_tokens == 1:
            self._finish(seq)
            return
        self.batch.join(seq)

    def _looks_up(self, request: Request) -> bool:
        wants_prompt_logprobs = request.sampling_params.prompt_logprobs is not None
        return self.cache.enable_prefix_caching and not wants_prompt_logprobs


def _key(seq: CountedSequence) -> tuple[float, str]:
    return seq.key
