"""Draws a token from each row of logits on the device, as engine/sampler.py does: its plain twin.

`sample_greedy` takes the largest logit of every row. `sample` does what each row's words ask for
(sampling_words.py): penalties, temperature, min_p, top_k, top_p and a draw, or the largest logit.
Both launch kernels and nothing else, in grids that follow from shapes, so that they can be captured
in a CUDA graph. A row's token depends on nothing but the row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.sampling_greedy import CHUNK, greedy_kernel
from pagetwin.kernels.sampling_levels import GROUP
from pagetwin.kernels.sampling_penalties import penalise
from pagetwin.kernels.sampling_random import choose_kernel, summarise_kernel

GREEDY_WARPS = 4
SUMMARISE_WARPS = 4
CHOOSE_WARPS = 16 if triton.__version__.startswith("3.6.") else 8
"""Other Tritons keep the values of 16 in registers no more."""

_greedy = Launcher(greedy_kernel)
_summarise = Launcher(summarise_kernel)
_choose = Launcher(choose_kernel)


class Scratch(NamedTuple):
    """What the kernels tell each other, for up to `max_rows` rows; c chunks cover a row."""

    peaks: Tensor
    """float32 [max_rows, c]"""
    masses: Tensor
    """float32 [max_rows, c]"""
    tokens: Tensor
    """int32 [max_rows, c]"""
    tops: Tensor
    """float32 [max_rows, c * groups of a chunk]"""
    hot: Tensor
    """int32, likewise."""
    arrivals: Tensor
    """int32 [max_rows], zeros between launches."""
    counts: Tensor
    """int32 [max_rows, vocab_size], zeros between launches."""

    @classmethod
    def allocate(cls, max_rows: int, vocab_size: int, device: torch.device) -> "Scratch":
        chunks = triton.cdiv(vocab_size, CHUNK.value)
        groups = chunks * (CHUNK.value // GROUP.value)

        def zeros(columns: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(max_rows, columns, dtype=dtype, device=device)

        return cls(
            peaks=zeros(chunks, torch.float32),
            masses=zeros(chunks, torch.float32),
            tokens=zeros(chunks),
            tops=zeros(groups, torch.float32),
            hot=zeros(groups),
            arrivals=zeros(1),
            counts=zeros(vocab_size),
        )

    @property
    def vocab_size(self) -> int:
        return self.counts.shape[1]


def sample_greedy(
    logits: Tensor,
    words: Tensor,
    token_table: Tensor,
    out: Tensor,
    failed: Tensor,
    scratch: Scratch,
) -> None:
    """Takes each row's largest logit, of equal ones the lowest token's, whatever its words ask for.

    logits float32 [R, at least vocab_size], each row contiguous; words int32 [NUM_WORDS, R], see
    sampling_words.py; token_table int32 [max_num_seqs, max_model_len]. The token goes to `out`,
    int32 [R], and to the place in token_table that the row's words name. `failed`, int32 [R], is 1
    where the largest logit is not a finite number, or any is NaN; such a row gets token 0. Nothing
    is written for padding rows.
    """
    _check(logits, words, out, failed, scratch)
    chunks = scratch.peaks.shape[1]
    _greedy(
        (chunks, logits.shape[0], 1),
        (
            logits,
            words,
            token_table,
            out,
            failed,
            scratch.peaks,
            scratch.tokens,
            scratch.arrivals,
            logits.stride(0),
            words.stride(0),
            token_table.stride(0),
            token_table.shape[1],
        ),
        (scratch.vocab_size, chunks, triton.next_power_of_2(chunks)),
        num_warps=GREEDY_WARPS,
    )


def sample(
    logits: Tensor,
    words: Tensor,
    token_table: Tensor,
    out: Tensor,
    failed: Tensor,
    scratch: Scratch,
) -> None:
    """Draws each row's token as its words ask; shapes and results as those of sample_greedy.

    `logits` is changed where a row has penalties, so rows must not share memory. A row fails by its
    logits after penalties.
    """
    _check(logits, words, out, failed, scratch)
    num_rows, chunks = logits.shape[0], scratch.peaks.shape[1]
    penalise(logits, words, token_table, scratch.counts)
    _summarise(
        (chunks, num_rows, 1),
        (
            logits,
            words,
            scratch.peaks,
            scratch.masses,
            scratch.tokens,
            scratch.tops,
            logits.stride(0),
            words.stride(0),
        ),
        (scratch.vocab_size,),
        num_warps=SUMMARISE_WARPS,
    )
    _choose(
        (num_rows, 1, 1),
        (
            logits,
            words,
            token_table,
            out,
            failed,
            scratch.peaks,
            scratch.masses,
            scratch.tokens,
            scratch.tops,
            scratch.hot,
            logits.stride(0),
            words.stride(0),
            token_table.stride(0),
            token_table.shape[1],
        ),
        (scratch.vocab_size, chunks, triton.next_power_of_2(chunks)),
        num_warps=CHOOSE_WARPS,
    )


def _check(logits: Tensor, words: Tensor, out: Tensor, failed: Tensor, scratch: Scratch) -> None:
    rows, columns = logits.shape
    if logits.dtype != torch.float32 or logits.stride(1) != 1 or columns < scratch.vocab_size:
        raise ValueError(
            "sampling: logits must be float32 with contiguous rows of at least "
            f"{scratch.vocab_size}; they are {logits.dtype} {tuple(logits.shape)} with strides "
            f"{logits.stride()}"
        )
    if rows > scratch.peaks.shape[0]:
        raise ValueError(
            f"sampling: {rows} rows of logits, but scratch memory for {scratch.peaks.shape[0]}; "
            "allocate it for more"
        )
    if words.dtype != torch.int32 or words.shape[1] != rows or words.stride(1) != 1:
        raise ValueError(
            f"sampling: words must be int32 [NUM_WORDS, {rows}], contiguous along the rows; they "
            f"are {words.dtype} {tuple(words.shape)} with strides {words.stride()}"
        )
    for name, result in (("out", out), ("failed", failed)):
        if result.dtype != torch.int32 or not result.is_contiguous() or len(result) < rows:
            raise ValueError(
                f"sampling: {name} must be int32 [{rows}], contiguous; it is {result.dtype} "
                f"{tuple(result.shape)} with strides {result.stride()}"
            )


def _sample_op(
    logits: Tensor,
    words: Tensor,
    token_table: Tensor,
    out: Tensor,
    failed: Tensor,
    scratch: Sequence[Tensor],
    greedy_only: bool,
) -> None:
    draw = sample_greedy if greedy_only else sample
    draw(logits, words, token_table, out, failed, Scratch(*scratch))


sample_op = torch.library.custom_op(
    "pagetwin::sample",
    _sample_op,
    mutates_args=("logits", "token_table", "out", "failed", "scratch"),
)
sample_op.register_fake(lambda *args: None)
