"""The kernel that takes each row's largest logit, of equal ones the lowest token's (Triton)."""

import triton
import triton.language as tl

from pagetwin.kernels.sampling_noise import NO_TOKEN
from pagetwin.kernels.sampling_words import HISTORY_ROW, NUM_TOKENS, TABLE_ROW, load_int

CHUNK = tl.constexpr(4096)
"""Tokens of a row that one program reads."""


@triton.jit
def load_chunk(logits_ptr, chunk, VOCAB: tl.constexpr):
    """A chunk's tokens and logits, -inf past the vocabulary, and +inf for NaN: a peak of either is
    not sound."""
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    if (chunk + 1) * CHUNK <= VOCAB:
        logit = tl.load(logits_ptr + token)
    else:
        logit = tl.load(logits_ptr + token, mask=token < VOCAB, other=float("-inf"))
    return token, tl.where(logit == logit, logit, float("inf"))


@triton.jit
def is_sound(peak):
    """Whether a row whose largest logit this is has a token to choose."""
    return (peak > float("-inf")) & (peak < float("inf"))


@triton.jit
def store_token(token, sound, words_ptr, words_stride, table, out_ptr, failed_ptr):
    """`table` is the token table's pointer, stride and width. A broken row gets token 0, so that
    a step that is launched behind this one reads a valid id."""
    table_ptr, table_stride, table_width = table
    token = tl.where(sound, token, 0)
    tl.store(out_ptr, token)
    tl.store(failed_ptr, tl.where(sound, 0, 1))
    table_row = load_int(words_ptr, words_stride, TABLE_ROW)
    place = load_int(words_ptr, words_stride, NUM_TOKENS)
    target_ptr = table_ptr + table_row.to(tl.int64) * table_stride + place
    tl.store(target_ptr, token, mask=(table_row >= 0) & (place < table_width))


@triton.jit(do_not_specialize=["words_stride"])
def greedy_kernel(
    logits_ptr,
    words_ptr,
    table_ptr,
    out_ptr,
    failed_ptr,
    peaks_ptr,
    tokens_ptr,
    arrivals_ptr,
    logits_stride,
    words_stride,
    table_stride,
    table_width,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNKS_PADDED: tl.constexpr,
):
    """One program per chunk and row; the last of a row to arrive merges what all have found."""
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    words_ptr += row
    if load_int(words_ptr, words_stride, HISTORY_ROW) < 0:
        return
    token, logit = load_chunk(logits_ptr + row.to(tl.int64) * logits_stride, chunk, VOCAB)
    top = tl.max(logit, 0)
    tl.store(peaks_ptr + row * CHUNKS + chunk, top)
    lowest = tl.min(tl.where(logit == top, token, NO_TOKEN), 0)
    tl.store(tokens_ptr + row * CHUNKS + chunk, lowest)
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel") == CHUNKS - 1:
        tl.store(arrivals_ptr + row, 0)
        part = tl.arange(0, CHUNKS_PADDED)
        is_part = part < CHUNKS
        part += row * CHUNKS
        peaks = tl.load(peaks_ptr + part, mask=is_part, other=float("-inf"))
        tokens = tl.load(tokens_ptr + part, mask=is_part, other=NO_TOKEN)
        peak = tl.max(peaks, 0)
        best = tl.min(tl.where(peaks == peak, tokens, NO_TOKEN), 0)
        table = (table_ptr, table_stride, table_width)
        store_token(
            best, is_sound(peak), words_ptr, words_stride, table, out_ptr + row, failed_ptr + row
        )
