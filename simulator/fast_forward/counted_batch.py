"""Decides how the sequences that decode go on, as long as nothing else happens.

Each gets one token in every step. So the step in which one ends is known when it joins, as are the
steps in which it takes a block; and a step costs a line in the sum of their contexts, so that many
cost a closed form.
"""

from heapq import heappop, heappush

from pagetwin.simulator.cost_model import CostModel, DecodeLine
from pagetwin.simulator.fast_forward.counted_pool import CountedPool
from pagetwin.simulator.fast_forward.counted_sequence import CountedSequence
from pagetwin.simulator.step_clock import alone_line


class CountedBatch:
    """The sequences that decode, and the number of steps done."""

    def __init__(self, block_size: int, lookahead: int, cost_model: CostModel) -> None:
        self.num_steps = 0
        """Since the start; a sequence that decodes got a token in each."""
        self.heap: list[tuple[int, int, CountedSequence]] = []
        """(ends_at, order of joining, sequence)."""
        self.num_context_tokens = 0
        """What they see in the next step."""
        self._takers: list[list[CountedSequence]] = [[] for _ in range(block_size)]
        """Those that take a block in steps of that number, modulo the block size; each list in
        running order."""
        self._block_size = block_size
        self._lookahead = lookahead
        self._cost_model = cost_model
        self._lines: dict[int, tuple[int, DecodeLine]] = {}
        """By the number of sequences, with the context from which on it holds."""
        self._num_joined = 0

    def __len__(self) -> int:
        return len(self.heap)

    @property
    def rows(self) -> list[CountedSequence]:
        """In running order."""
        return [seq for _, _, seq in sorted(self.heap, key=lambda entry: entry[1])]

    def line(self) -> DecodeLine:
        """On which the next steps lie; see `CostModel.decode_line`."""
        count, context = len(self.heap), self.num_context_tokens
        known = self._lines.get(count)
        if known is not None:
            first_context, line = known
            last_context = line[2]
            if first_context <= context and (last_context is None or context <= last_context):
                return line
        line = alone_line(self._cost_model, count, context)
        self._lines[count] = context, line
        return line

    def first_ticks(self) -> int:
        """Ticks of the next step."""
        base, slope, _ = self.line()
        return base + slope * self.num_context_tokens

    def duration(self, num_steps: int) -> int:
        """Ticks of the next steps, which lie on one line."""
        base, slope, _ = self.line()
        first, growth = base + slope * self.num_context_tokens, slope * len(self.heap)
        return num_steps * first + growth * (num_steps * (num_steps - 1) // 2)

    def steps_within(self, left: int | None, through: int | None) -> tuple[int, int]:
        """How many steps end less than `left` ticks from now (None: any do), and their ticks; not
        beyond the first that ends a sequence, nor beyond the line.

        With `through` also the one under way when `left` is over, if it ends before `through`.
        """
        count, context = len(self.heap), self.num_context_tokens
        base, slope, last_context = self.line()
        first, growth = base + slope * context, slope * count
        most = self.heap[0][0] - self.num_steps
        if last_context is not None:
            most = min(most, (last_context - context) // count + 1)
        duration = most * first + growth * (most * (most - 1) // 2)
        if left is None or duration < left:
            return most, duration
        num_steps = min(most, left // first + 1)  # no step is shorter than the first
        duration = num_steps * first + growth * (num_steps * (num_steps - 1) // 2)
        while duration >= left:
            num_steps -= 1
            duration -= first + growth * num_steps
        if through is not None and num_steps < most:
            end = duration + first + growth * num_steps
            if end < through:
                return num_steps + 1, end
        return num_steps, duration

    def num_takers(self, step: int = 0) -> int:
        """Blocks that the step takes, counted from the next."""
        return len(self._takers[(self.num_steps + step) % self._block_size])

    def steps_without_shortage(self, num_steps: int, num_free: int) -> int:
        """How many of the steps so many free blocks suffice for."""
        if len(self.heap) * (num_steps // self._block_size + 1) <= num_free:
            return num_steps
        for step in range(num_steps):
            num_free -= self.num_takers(step)
            if num_free < 0:
                return step
        return num_steps

    def take_blocks(self, num_steps: int, pool: CountedPool) -> None:
        """Those of the next steps, step by step, in running order; as many must be free."""
        takers, block_size = self._takers, self._block_size
        queue, head = pool.queue, pool.head
        for step in range(self.num_steps, self.num_steps + num_steps):
            for seq in takers[step % block_size]:
                seq.block_table.append(queue[head])
                head += 1
        pool.head = head

    def advance(self, num_steps: int) -> None:
        """Those steps are done."""
        self.num_steps += num_steps
        self.num_context_tokens += num_steps * len(self.heap)

    def pop_ended(self) -> list[CountedSequence]:
        """Takes out those that the last step gave their last token, in running order."""
        heap, ended = self.heap, []
        while heap and heap[0][0] == self.num_steps:
            seq = heappop(heap)[2]
            self.num_context_tokens -= seq.num_prompt_tokens + seq.num_output_tokens
            self._takers[seq.take_place].remove(seq)
            ended.append(seq)
        return ended

    def join(self, seq: CountedSequence) -> None:
        """It has its first token, by the last step, and is to get more."""
        seq.ends_at = self.num_steps + seq.num_output_tokens - 1
        heappush(self.heap, (seq.ends_at, self._num_joined, seq))
        self._num_joined += 1
        self.num_context_tokens += seq.num_prompt_tokens + 1
        # A step that reaches, with the lookahead, one token beyond a whole number of blocks.
        reach = seq.num_prompt_tokens + self._lookahead
        seq.take_place = (self.num_steps - reach) % self._block_size
        self._takers[seq.take_place].append(seq)
