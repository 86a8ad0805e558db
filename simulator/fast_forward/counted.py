"""Decides what a replica does in runs where no two sequences share anything and memory suffices.

Most of a serving run is like that: requests come, prefill, decode and go. Then a sequence is
known by a few numbers: its block table, and the decode step (counted since the start) in which it
ends. All decoding sequences get one token in every step, so that none of them is touched between
its prefill and its end but to take a block: a step is a sum over the batch, and many steps are a
closed form. What this cannot do (`countable`) is said before it has happened, and the plain
replica goes on from there (`fast_forward.handover`).
"""

from bisect import insort
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.request import Request
from pagetwin.engine.step import Counters
from pagetwin.simulator.clock import to_ticks
from pagetwin.simulator.cost_model import CostModel, DecodeLine, StepComposition
from pagetwin.simulator.fast_forward.counted_pool import CountedPool, opening
from pagetwin.simulator.fast_forward.counted_sequence import (
    Admission,
    CountedSequence,
    MixedStep,
)
from pagetwin.simulator.fast_forward.ending import Ending
from pagetwin.simulator.step_clock import alone_line, alone_ticks
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
        self.num_steps = 0
        """Done since the start; a sequence that decodes got a token in each."""
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
        self.decoding: list[tuple[int, int, CountedSequence]] = []
        """Heap of (ends_at, admission, sequence)."""
        self.num_submitted = 0
        self.num_finished = 0
        self.num_prefix_queries = 0
        self.num_context_tokens = 0
        """What the decoding sequences see in the next step."""
        self.takers: list[list[CountedSequence]] = [[] for _ in range(cache.block_size)]
        """Those that take a block in steps of that number, modulo the block size; each list in
        running order."""
        self.cost_model = cost_model
        self.line = DecodeLine(0, 0)
        """Of the steps that `decode_steps` looked at last."""
        self._lines: dict[int, tuple[int, DecodeLine]] = {}
        """By the number of decoding sequences, with the context from which on it holds."""
        self._deliver = deliver
        self._on_first_token = on_first_token
        self.gaps: TokenGaps | None = None
        """To be set by whoever wants the gaps between tokens counted."""
        self.num_promised_blocks = 0
        """What those who are there hold when they end."""
        self.may_admit = False
        """Whether the first that waits may find room; what it lacks comes with an end only."""
        self._num_joined = 0

    def submit(self, request: Request, now: int, ending: Ending) -> None:
        """Adds a request at tick `now`, up to which it has advanced."""
        start = None
        if self.cache.enable_prefix_caching:
            start = opening(request)
            self.pool.openings.add(start)
        seq = CountedSequence(request, self.num_submitted, now, ending, start)
        self.num_submitted += 1
        self.num_promised_blocks += self._blocks_for(
            seq.num_prompt_tokens + seq.num_output_tokens - 1
        )
        self.live[request.request_id] = seq
        if self.decoding or self.prefilling is not None or self.waiting:
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
        by_admission = sorted(self.decoding, key=lambda entry: entry[1])
        rows = [seq for _, _, seq in by_admission]
        return rows if self.prefilling is None else [*rows, self.prefilling]

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
                if step.num_chunk_tokens == 0 and not step.admitted and self.decoding:
                    continue  # nobody fits: they decode on
                if not self._do_mixed(step, until):
                    return True
            elif self.decoding:
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
        count, context = len(self.decoding), self.num_context_tokens
        self.line = self._line(count, context)
        base, slope, last_context = self.line
        first = base + slope * context
        if self.late:
            is_over = until is None or first < until - self.now
            return (1, first) if is_over else (0, 0)
        growth = slope * count
        most = self.decoding[0][0] - self.num_steps
        if last_context is not None:
            most = min(most, (last_context - context) // count + 1)
        num_steps = most
        duration = num_steps * first + growth * (num_steps * (num_steps - 1) // 2)
        if until is None or duration < until - self.now:
            return num_steps, duration
        left = until - self.now
        num_steps = min(most, left // first + 1)  # no step is shorter than the first
        duration = num_steps * first + growth * (num_steps * (num_steps - 1) // 2)
        while duration >= left:
            num_steps -= 1
            duration -= first + growth * num_steps
        if through is not None and num_steps < most:
            end = duration + first + growth * num_steps
            if end < through - self.now:
                return num_steps + 1, end
        return num_steps, duration

    def _line(self, count: int, context: int) -> DecodeLine:
        known = self._lines.get(count)
        if known is not None:
            first_context, line = known
            last_context = line[2]
            if first_context <= context and (last_context is None or context <= last_context):
                return line
        line = alone_line(self.cost_model, count, context)
        self._lines[count] = context, line
        return line

    def steps_without_shortage(self, num_steps: int) -> int:
        """How many of the steps the free blocks suffice for."""
        num_free = self.pool.num_free()
        if len(self.decoding) * (num_steps // self.block_size + 1) <= num_free:
            return num_steps
        for step in range(num_steps):
            num_free -= len(self.takers[(self.num_steps + step) % self.block_size])
            if num_free < 0:
                return step
        return num_steps

    def _decode(self, num_steps: int, duration: int) -> bool:
        """False if blocks are short; those before the shortage are done."""
        count = len(self.decoding)
        suffice = self.steps_without_shortage(num_steps)
        is_short = suffice < num_steps
        if is_short:
            num_steps = suffice
            base, slope, _ = self.line
            grown = count * (num_steps * (num_steps - 1) // 2)
            duration = num_steps * (base + slope * self.num_context_tokens) + slope * grown
        if num_steps > 0:
            if self.gaps is not None:
                base, slope, _ = self.line
                first = base + slope * self.num_context_tokens
                self.gaps.line(first, slope * count, num_steps, count)
            self._take(num_steps)
            self.now += duration
            self.busy_ticks += duration
            self.last_end = self.now
            self.num_steps += num_steps
            self.num_context_tokens += count * num_steps
            if self.decoding[0][0] == self.num_steps:
                self._finish_due()
            if self.late:
                self._end_step()
        return not is_short

    def _take(self, num_steps: int) -> None:
        """The blocks of the next steps, step by step, in running order."""
        takers, block_size, pool = self.takers, self.block_size, self.pool
        queue, head = pool.queue, pool.head
        for step in range(self.num_steps, self.num_steps + num_steps):
            for seq in takers[step % block_size]:
                seq.block_table.append(queue[head])
                head += 1
        if head > pool.head:
            pool.head = head

    def _finish_due(self) -> None:
        """Ends those that the last step gave their last token, in running order."""
        decoding, num_steps = self.decoding, self.num_steps
        while decoding and decoding[0][0] == num_steps:
            seq = heappop(decoding)[2]
            self.num_context_tokens -= seq.num_prompt_tokens + seq.num_output_tokens
            self.takers[seq.take_place].remove(seq)
            self._finish(seq)

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
        knobs, num_decoding = self.scheduler, len(self.decoding)
        num_free = self.pool.num_free() - len(self.takers[self.num_steps % self.block_size])
        budget = knobs.max_num_batched_tokens - num_decoding
        num_running = num_decoding
        chunk_tokens = chunk_blocks = 0
        chunk = self.prefilling
        if chunk is not None:
            num_running += 1
            chunk_tokens = min(chunk.num_prompt_tokens - chunk.num_computed_tokens, budget)
            end = chunk.num_computed_tokens + chunk_tokens
            if chunk_tokens > 0:
                chunk_blocks = max(0, self._blocks_for(end) - len(chunk.block_table))
            budget -= chunk_tokens
            num_free -= chunk_blocks
        if num_free < 0:
            return None
        admitted: list[Admission] = []
        for seq in self.waiting:
            num_tokens = min(seq.num_prompt_tokens, budget)
            is_whole = num_tokens == seq.num_prompt_tokens
            if num_tokens <= 0 or num_running >= knobs.max_num_seqs:
                break
            if not is_whole and not knobs.enable_chunked_prefill:
                break
            num_blocks = self._blocks_for(num_tokens)
            if num_free - num_blocks < (self.cache.watermark_blocks if num_running else 0):
                break
            num_free -= num_blocks
            budget -= num_tokens
            num_running += 1
            admitted.append(Admission(seq, num_tokens, num_blocks))
        # Who did not fit beside the others may fit behind them.
        self.may_admit = bool(admitted) or chunk is not None
        return MixedStep(chunk_tokens, chunk_blocks, admitted)

    def _do_mixed(self, step: MixedStep, until: int | None) -> bool:
        """False, and nothing changed, if the step does not end before `until`."""
        duration = alone_ticks(self.cost_model, self.composition(step))
        if until is not None and self.now + duration >= until:
            self.may_admit = True
            return False
        start = self.now
        count = len(self.decoding)
        if self.gaps is not None and count > 0:
            self.gaps.line(duration, 0, 1, count)
        self._take(1)
        chunk = self.prefilling
        joined: list[CountedSequence] = []
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
        self.now = start + duration
        self.busy_ticks += duration
        self.last_end = self.now
        self.num_steps += 1
        self.num_context_tokens += count
        if count and self.decoding[0][0] == self.num_steps:
            self._finish_due()
        for seq in joined:
            if seq.num_computed_tokens < seq.num_prompt_tokens:
                self.prefilling = seq
            else:
                self._join(seq)
        if self.late:
            self._end_step()
        return True

    def composition(self, step: MixedStep) -> StepComposition:
        num_decoding, context = len(self.decoding), self.num_context_tokens
        samples = num_decoding
        chunks = tokens = area = prefix = 0
        rows = [(one.seq.num_prompt_tokens, 0, one.num_tokens) for one in step.admitted]
        if self.prefilling is not None and step.num_chunk_tokens > 0:
            seq = self.prefilling
            rows.append((seq.num_prompt_tokens, seq.num_computed_tokens, step.num_chunk_tokens))
        for prompt, computed, count in rows:
            if count == 1:
                num_decoding += 1
                context += computed + 1
            else:
                chunks += 1
                tokens += count
                prefix += computed
                area += count * computed + count * (count + 1) // 2
            samples += computed + count == prompt
        return StepComposition(
            num_prefill_sequences=chunks,
            num_prefill_tokens=tokens,
            prefill_area=area,
            num_prefix_tokens=prefix,
            num_decode_sequences=num_decoding,
            num_context_tokens=context,
            num_samples=samples,
        )

    def _join(self, seq: CountedSequence) -> None:
        """Its prompt is computed: it has its first token, and decodes unless that was the last."""
        seq.first_token = self.now
        if self._on_first_token is not None:
            self._on_first_token(seq.request.request_id, self.now)
        if seq.num_output_tokens == 1:
            self._finish(seq)
            return
        seq.ends_at = self.num_steps + seq.num_output_tokens - 1
        heappush(self.decoding, (seq.ends_at, self._num_joined, seq))
        self._num_joined += 1
        self.num_context_tokens += seq.num_prompt_tokens + 1
        # A step that reaches, with the lookahead, one token beyond a whole number of blocks.
        reach = seq.num_prompt_tokens + self.scheduler.num_lookahead_slots
        seq.take_place = (self.num_steps - reach) % self.block_size
        self.takers[seq.take_place].append(seq)

    def _blocks_for(self, num_tokens: int) -> int:
        reach = num_tokens + self.scheduler.num_lookahead_slots
        return -(-reach // self.block_size)

    def _looks_up(self, request: Request) -> bool:
        wants_prompt_logprobs = request.sampling_params.prompt_logprobs is not None
        return self.cache.enable_prefix_caching and not wants_prompt_logprobs


def _key(seq: CountedSequence) -> tuple[float, str]:
    return seq.key
