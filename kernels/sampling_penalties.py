"""Repetition, frequency and presence penalties on the device (Triton; engine/logits.py)."""

import triton
import triton.language as tl
from torch import Tensor

from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.sampling_words import (
    FREQUENCY,
    HISTORY_ROW,
    NUM_TOKENS,
    PRESENCE,
    PROMPT_LEN,
    REPETITION,
    load_float32,
    load_float64,
    load_int,
)

_TILE = 2048
PENALISE_WARPS = 8
_IN_PROMPT = tl.constexpr(1)
_ONE_OUTPUT = tl.constexpr(2)


@triton.jit(do_not_specialize=["words_stride"])
def penalise_kernel(
    logits_ptr,
    words_ptr,
    table_ptr,
    counts_ptr,
    logits_stride,
    words_stride,
    table_stride,
    counts_stride,
    TILE: tl.constexpr,
):
    """One program per row. Counts the row's tokens, then applies each distinct one's penalty."""
    row = tl.program_id(0)
    words_ptr += row
    history_row = load_int(words_ptr, words_stride, HISTORY_ROW)
    if history_row < 0:
        return
    repetition = load_float32(words_ptr, words_stride, REPETITION)
    frequency = load_float64(words_ptr, words_stride, FREQUENCY)
    presence = load_float64(words_ptr, words_stride, PRESENCE)
    if (repetition == 1.0) & (frequency == 0.0) & (presence == 0.0):
        return
    prompt_len = load_int(words_ptr, words_stride, PROMPT_LEN)
    num_tokens = load_int(words_ptr, words_stride, NUM_TOKENS)
    first = tl.where(repetition == 1.0, prompt_len, 0)  # only repetition looks at the prompt
    history_ptr = table_ptr + history_row.to(tl.int64) * table_stride
    counts_ptr += row.to(tl.int64) * counts_stride
    logits_ptr += row.to(tl.int64) * logits_stride
    for start in range(first, num_tokens, TILE):
        place = start + tl.arange(0, TILE)
        token = tl.load(history_ptr + place, mask=place < num_tokens, other=0)
        is_output = (place >= prompt_len) & (place < num_tokens)
        tl.atomic_or(counts_ptr + token, _IN_PROMPT, mask=place < prompt_len, sem="relaxed")
        tl.atomic_add(counts_ptr + token, _ONE_OUTPUT, mask=is_output, sem="relaxed")
    tl.debug_barrier()
    for start in range(first, num_tokens, TILE):
        place = start + tl.arange(0, TILE)
        is_token = place < num_tokens
        token = tl.load(history_ptr + place, mask=is_token, other=0)
        # Whichever of a token's places comes first takes the count away and applies the penalty.
        # All give the same result, and the counts are zero again.
        none = tl.zeros([TILE], tl.int32)
        seen = tl.atomic_xchg(counts_ptr + token, none, mask=is_token, sem="relaxed")
        takes = is_token & (seen != 0)
        count = seen // _ONE_OUTPUT
        value = tl.load(logits_ptr + token, mask=takes, other=0.0)
        value = tl.where(value > 0, tl.div_rn(value, repetition), value * repetition)
        penalty = (count.to(tl.float64) * frequency + presence).to(tl.float32)
        value = tl.where(count > 0, value - penalty, value)
        tl.store(logits_ptr + token, value, mask=takes)


# A fused multiply-add would round otherwise than the twin.
_penalise = Launcher(penalise_kernel, enable_fp_fusion=False)


def penalise(logits: Tensor, words: Tensor, token_table: Tensor, counts: Tensor) -> None:
    """Applies the penalties of the rows that have any to `logits`, in place.

    logits float32 [R, V], rows contiguous and apart; words int32 [NUM_WORDS, R], see
    sampling_words.py; token_table int32 [max_num_seqs, max_model_len]; counts int32
    [at least R, at least V], all zeros before and after. Each penalty is rounded as in
    engine/logits.py: a token's count times the frequency penalty, plus the presence penalty, in
    float64, then once to float32.
    """
    _penalise(
        (logits.shape[0], 1, 1),
        (
            logits,
            words,
            token_table,
            counts,
            logits.stride(0),
            words.stride(0),
            token_table.stride(0),
            counts.stride(0),
        ),
        (_TILE,),
        num_warps=PENALISE_WARPS,
    )
