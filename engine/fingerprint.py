"""An executor without a model: exact, float-free, and blind to nothing that paging can get wrong.

Its "KV" is one 64-bit integer per slot, a hash of the token, its position and the slot before it,
all read through the block table; its next token is a hash of every slot that the sequence can
see. A wrong slot, a stale or shared block, a lost token, a wrong order or a copy too late changes
the output. A request's output is a function of its prompt, its key fields (salt, adapter, media),
its seed and its sample index, whatever the batch, the schedule or the blocks.
"""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from pagetwin.engine.config import CacheConfig
from pagetwin.engine.request import Request
from pagetwin.engine.step import (
    BlockCopy,
    ScheduledSequence,
    StepPlan,
    StepResult,
    TokenLogprobs,
)

_MASK = (1 << 64) - 1
_Slots = npt.NDArray[np.uint64]


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection on 64 bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@dataclass(slots=True)
class _Row:
    request: Request
    sample_index: int
    token_ids: list[int]
    block_ids: list[int]
    root: int
    """What stands before the first slot: the request's salt and adapter."""
    media: dict[int, int]
    """What a medium adds to the token at its position."""


class FingerprintExecutor:
    """Carries out plans over integers. `vocab_size` tokens 0..vocab_size-1 are sampled.

    Memory that was never written, and the null block, hold junk that differs from slot to slot.
    """

    def __init__(self, cache: CacheConfig, *, vocab_size: int = 64) -> None:
        self._size = cache.block_size
        self._window = cache.sliding_window
        self._vocab_size = vocab_size
        self._slots = _junk(cache.num_blocks, self._size)
        self._host_slots = _junk(cache.num_host_blocks, self._size)
        self._weights = _junk(1, 256)[0] | np.uint64(1)
        self._requests: dict[str, Request] = {}
        self._rows: dict[str, _Row] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        _copy(plan.swap_outs, self._slots, self._host_slots)
        _copy(plan.swap_ins, self._host_slots, self._slots)
        _copy(plan.copies, self._slots, self._slots)
        self.follow(plan)
        # All writes come before all reads, as in a layer that stores K/V and then attends.
        for entry in plan.scheduled:
            self._write(self._rows[entry.seq_id], entry)
        sampled: dict[str, int] = {}
        logprobs: dict[str, TokenLogprobs] = {}
        for entry in plan.scheduled:
            if entry.samples:
                self._sample(entry, sampled, logprobs)
        return StepResult(step=plan.step, sampled=sampled, logprobs=logprobs)

    @property
    def num_kept(self) -> int:
        """Rows and requests that it remembers."""
        return len(self._rows) + len(self._requests)

    def follow(self, plan: StepPlan) -> None:
        """Brings the rows to where the plan has them, and computes nothing: what is left of a
        plan that could not be carried out."""
        for seq_id in plan.dropped:
            del self._rows[seq_id]
        for request_id in plan.ended_requests:
            del self._requests[request_id]
        for request in plan.new_requests:
            self._requests[request.request_id] = request
        for new in plan.introduced:
            request = self._requests[new.request_id]
            self._rows[new.seq_id] = _Row(
                request,
                new.sample_index,
                list(new.token_ids),
                list(new.block_ids),
                _hash(request.cache_salt, request.adapter_id),
                _media(request),
            )
        for entry in plan.scheduled:
            row = self._rows[entry.seq_id]
            row.block_ids.extend(entry.new_block_ids)
            for index, block_id in entry.replaced_blocks:
                row.block_ids[index] = block_id

    def _write(self, row: _Row, entry: ScheduledSequence) -> None:
        start = entry.num_computed_tokens
        value = row.root
        if start > 0 and self._window != 1:
            value = int(
                self._slots[row.block_ids[(start - 1) // self._size], (start - 1) % self._size]
            )
        for position in range(start, start + entry.num_scheduled_tokens):
            if self._window == 1:
                value = row.root
            token = (position << 32) + row.token_ids[position]
            value = _mix(value ^ _mix(token) ^ row.media.get(position, 0))
            self._slots[row.block_ids[position // self._size], position % self._size] = value

    def _read(self, row: _Row, end: int) -> int:
        """Hash of the slots that position end - 1 sees, each weighted by its position."""
        start = max(0, end - self._window) if self._window else 0
        first = start // self._size
        blocks = row.block_ids[first : -(-end // self._size)]
        visible = self._slots[blocks].ravel()[start - first * self._size : end - first * self._size]
        while len(self._weights) < end:
            size = 2 * len(self._weights)
            self._weights = _junk(1, size)[0] | np.uint64(1)
        return _mix(int((visible * self._weights[start:end]).sum()))

    def _sample(
        self,
        entry: ScheduledSequence,
        sampled: dict[str, int],
        logprobs: dict[str, TokenLogprobs],
    ) -> None:
        row = self._rows[entry.seq_id]
        request = row.request
        fingerprint = self._read(row, entry.num_computed_tokens + entry.num_scheduled_tokens)
        if request.beam_search is not None:
            logprobs[entry.seq_id] = self._candidates(fingerprint)
            return
        forks = len(row.token_ids) == request.num_prompt_tokens
        indices = range(request.num_samples) if forks else (row.sample_index,)
        seed = request.sampling_params.seed or 0
        for index in indices:
            token = _mix(fingerprint ^ _mix((seed << 20) + index)) % self._vocab_size
            sampled[f"{request.request_id}/{index}"] = token
            if index == row.sample_index:
                row.token_ids.append(token)

    def _candidates(self, fingerprint: int) -> TokenLogprobs:
        """Every token with a made-up log-probability, best first; no two are equal."""
        scored = sorted(
            (-(_mix(fingerprint + token) >> 40) / (1 << 20) - token / (1 << 30), token)
            for token in range(self._vocab_size)
        )[::-1]
        return TokenLogprobs(
            token_ids=tuple(token for _, token in scored),
            logprobs=tuple(score for score, _ in scored),
            ranks=tuple(range(1, len(scored) + 1)),
        )


def _media(request: Request) -> dict[int, int]:
    """Each position that a medium covers changes by what is shown there, and no other does: what
    stands before a medium may be shared with requests that have none."""
    return {
        span.offset + place: _hash(span.digest, place)
        for span in request.media
        for place in range(span.length)
    }


def _hash(*fields: object) -> int:
    return int.from_bytes(sha256(repr(fields).encode()).digest()[:8], "little")


def _junk(num_blocks: int, block_size: int) -> _Slots:
    """Slots [num_blocks, block_size] of different 64-bit values."""
    value = np.arange(1, num_blocks * block_size + 1, dtype=np.uint64)
    value *= np.uint64(0x9E3779B97F4A7C15)
    value ^= value >> np.uint64(30)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(27)
    value *= np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value.reshape(num_blocks, block_size)


def _copy(copies: tuple[BlockCopy, ...], source: _Slots, destination: _Slots) -> None:
    for copy in copies:
        destination[copy.destination] = source[copy.source]
