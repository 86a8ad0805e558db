"""Sampling on the device: which steps it can serve, and what each row of them asks of the kernels.

Its plain twin is `Sampler`, which draws the same tokens and serves whatever this one refuses. A
sequence's wishes are worked out once, when it gets its row of the batch, and kept in arrays by
row; a step gathers what it needs without a Python loop.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.engine.beam_search import ending_token_ids
from pagetwin.engine.noise import draw_for
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import SamplingRow
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.kernels import sampling
from pagetwin.kernels import sampling_words as word

_NEVER = np.iinfo(np.int64).max
_PADDING = -1


class DeviceSampler:
    """The wishes of up to `max_num_seqs` sequences by row, and the memory that the kernels need.

        free --add--> taken --remove--> free
                       | add: written anew

    `num_words` is how many int32 words a step's row takes; see kernels/sampling_words.py. A step
    has at most `max_rows` rows of logits, its padding included.
    """

    num_words = word.NUM_WORDS

    def __init__(
        self,
        vocab_size: int,
        max_num_seqs: int,
        device: torch.device,
        *,
        seed: int = 0,
        max_rows: int | None = None,
    ) -> None:
        self.seed = seed
        self._vocab_size = vocab_size
        self._scratch = sampling.Scratch.allocate(max_rows or max_num_seqs, vocab_size, device)
        self._words = np.zeros((self.num_words, max_num_seqs), np.int32)
        self._served_from = np.zeros(max_num_seqs, np.int64)
        """From how many known tokens on the row's draws can be made here."""
        self._is_plain = np.ones(max_num_seqs, bool)
        """Greedy and without penalties."""
        self._reasons = [""] * max_num_seqs

    def add(self, row: int, sampling_row: SamplingRow) -> None:
        """Notes what the sequence asks for that has that row of the batch and the token table."""
        request = sampling_row.request
        params = request.sampling_params
        self._served_from[row], self._reasons[row] = _served_from(request)
        self._is_plain[row] = params.is_greedy and not _has_penalties(params)
        self._words[:, row] = _words(sampling_row, row, self._vocab_size, self.seed)

    def remove(self, row: int) -> None:
        """Forgets the sequence; the row asks for nothing until it is added again."""
        self._words[:, row] = 0
        self._served_from[row] = 0
        self._is_plain[row] = True
        self._reasons[row] = ""

    def rejection(self, rows: NDArray[np.int64], num_tokens: NDArray[np.int64]) -> str | None:
        """Why this step's rows must go through `Sampler`; None if they need not.

        rows [R]: the batch's row behind each row of logits; num_tokens [R]: how many tokens are
        known of it, the drawn one's position.
        """
        refused = num_tokens < self._served_from[rows]
        return self._reasons[rows[refused.argmax()]] if refused.any() else None

    def is_greedy(self, rows: NDArray[np.int64]) -> bool:
        """Whether every row takes its largest logit, and none has a penalty."""
        return bool(self._is_plain[rows].all())

    def fill(
        self,
        words: NDArray[np.int32],
        rows: NDArray[np.int64],
        num_tokens: NDArray[np.int64],
        sample_indices: NDArray[np.int64] | None = None,
    ) -> None:
        """Gathers the words of a step's rows of logits, and pads the columns behind them.

        words: [num_words, at least R]; rows, num_tokens: as for `rejection`. Where a group forks,
        its row stands once for each sample and `sample_indices` [R] tells them apart: a sample that
        has no row of its own yet draws from its group's tokens, and its own is not written there.
        """
        size = len(rows)
        part = words[:, :size]
        np.take(self._words, rows, axis=1, out=part, mode="clip")
        part[word.NUM_TOKENS.value] = num_tokens
        words[word.HISTORY_ROW.value, size:] = _PADDING
        if sample_indices is not None:
            own = part[word.SAMPLE_INDEX.value]
            part[word.TABLE_ROW.value, own != sample_indices] = _PADDING
            own[:] = sample_indices

    def sample(
        self,
        logits: Tensor,
        words: Tensor,
        token_table: Tensor,
        out: Tensor,
        failed: Tensor,
        *,
        greedy_only: bool,
    ) -> None:
        """Launches the kernels that draw each row's token; can be captured in a CUDA graph.

        See kernels/sampling.py for the tensors; `logits` is changed where a row has penalties.
        `greedy_only`: for steps of which `is_greedy` holds, and cheaper.
        """
        draw = sampling.sample_greedy if greedy_only else sampling.sample
        draw(logits, words, token_table, out, failed, self._scratch)


def _has_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
    )


def _served_from(request: Request) -> tuple[int, str]:
    """From how many known tokens on the kernels can draw for it, and why not before."""
    params = request.sampling_params
    unserved = {
        "beam search": request.beam_search is not None,
        "logprobs": params.num_logprobs is not None,
        "logit_bias": bool(params.logit_bias),
        "allowed_token_ids": params.allowed_token_ids is not None,
        "bad_words": bool(request.bad_words_token_ids),
    }
    wishes = [wish for wish, is_wanted in unserved.items() if is_wanted]
    if wishes:
        return _NEVER, f"request {request.request_id!r} asks for {' and '.join(wishes)}"
    forced = len(params.trace_decode_token_ids)
    banned = params.min_tokens if ending_token_ids(request) else 0
    least = max(forced, banned)
    wish = "trace_decode_token_ids" if forced == least else "min_tokens"
    reason = f"{wish} shape the first {least} tokens of request {request.request_id!r}"
    return request.num_prompt_tokens + least if least else 0, reason


def _words(
    sampling_row: SamplingRow, row: int, vocab_size: int, engine_seed: int
) -> NDArray[np.int32]:
    """The row's words, [num_words]; NUM_TOKENS is each step's own."""
    request = sampling_row.request
    params = request.sampling_params
    draw = draw_for(
        params.seed,
        engine_seed=engine_seed,
        request_id=request.request_id,
        sample_index=sampling_row.sample_index,
        position=0,
    )
    log_min_p = math.log(params.min_p) if params.min_p > 0.0 else -math.inf
    values: dict[Any, np.generic] = {
        word.HISTORY_ROW: np.int32(row),
        word.TABLE_ROW: np.int32(row),
        word.PROMPT_LEN: np.int32(request.num_prompt_tokens),
        word.KEY_LOW: np.uint32(draw.key_low),
        word.KEY_HIGH: np.uint32(draw.key_high),
        word.SAMPLE_INDEX: np.uint32(draw.sample_index),
        word.STREAM: np.uint32(draw.stream),
        word.TEMPERATURE: np.float32(params.temperature),
        word.TOP_K: np.int32(params.top_k if params.top_k < vocab_size else 0),
        word.LOG_MIN_P: np.float64(log_min_p),
        word.TOP_P: np.float64(params.top_p),
        word.REPETITION: np.float32(params.repetition_penalty),
        word.FREQUENCY: np.float64(params.frequency_penalty),
        word.PRESENCE: np.float64(params.presence_penalty),
    }
    words = np.zeros(word.NUM_WORDS, np.int32)
    for index, value in values.items():
        halves = np.frombuffer(value.tobytes(), np.int32)
        words[index.value : index.value + len(halves)] = halves
    return words
