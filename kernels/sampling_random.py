"""The kernels that draw a token from each row, truncated as the row's words ask (Triton).

A row is read little more than once. `summarise_kernel` reads it in chunks, and leaves of each the
token of the largest noisy logit, the largest logit and the softmax's mass, and the largest logit of
each group of tokens. `choose_kernel` merges these, and reads some groups again where the row is
truncated.
"""

import triton
import triton.language as tl

from pagetwin.kernels.sampling_greedy import CHUNK, is_sound, load_chunk, store_token
from pagetwin.kernels.sampling_levels import (
    GROUP,
    ROUGH_MASS_ERROR,
    TILE,
    draw_before,
    exact_excess,
    highest_level,
    list_hot,
    mass_before,
    raised,
    rough_mass,
)
from pagetwin.kernels.sampling_noise import (
    LOG2E,
    NO_TOKEN,
    arrivals,
    best_until,
    load_draw,
    noise_words,
    scaled,
    score_of,
)
from pagetwin.kernels.sampling_words import (
    HISTORY_ROW,
    LOG_MIN_P,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    load_float32,
    load_float64,
    load_int,
)

GROUPS = tl.constexpr(CHUNK.value // GROUP.value)
"""Groups of a chunk."""


@triton.jit
def load_limits(words_ptr, words_stride):
    """top_k, the logarithm of min_p, top_p, and whether any of them is on."""
    top_k = load_int(words_ptr, words_stride, TOP_K)
    log_min_p = load_float64(words_ptr, words_stride, LOG_MIN_P)
    top_p = load_float64(words_ptr, words_stride, TOP_P)
    return top_k, log_min_p, top_p, (top_k > 0) | (log_min_p > float("-inf")) | (top_p < 1.0)


@triton.jit(do_not_specialize=["words_stride"])
def summarise_kernel(
    logits_ptr,
    words_ptr,
    peaks_ptr,
    masses_ptr,
    tokens_ptr,
    tops_ptr,
    logits_stride,
    words_stride,
    VOCAB: tl.constexpr,
):
    """One program per chunk and row.

    Leaves the chunk's largest scaled logit, and its token of the largest noisy logit: not where
    there is top_k, which few tokens survive. The rest it leaves where it will be used.
    """
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    words_ptr += row
    if load_int(words_ptr, words_stride, HISTORY_ROW) < 0:
        return
    part = row * tl.num_programs(0) + chunk
    logits_ptr += row.to(tl.int64) * logits_stride
    token, logit = load_chunk(logits_ptr, chunk, VOCAB)
    top = tl.max(logit, 0)
    peak = top
    best = tl.full([], NO_TOKEN, tl.int32)
    temperature = load_float32(words_ptr, words_stride, TEMPERATURE)
    if temperature == 0.0:
        best = tl.min(tl.where(logit == top, token, NO_TOKEN), 0)
    else:
        top_k, log_min_p, top_p, truncates = load_limits(words_ptr, words_stride)
        peak = scaled(top, temperature)  # division rounds monotonically
        if truncates:
            tops = tl.max(tl.reshape(logit, [GROUPS, GROUP]), 1)
            tl.store(tops_ptr + part * GROUPS + tl.arange(0, GROUPS), scaled(tops, temperature))
        if is_sound(peak) & (top_k == 0):
            halvings = (top - logit) * (tl.div_rn(1.0, temperature) * LOG2E)
            if (top_p < 1.0) & (log_min_p == float("-inf")):
                tl.store(masses_ptr + part, rough_mass(halvings))
            draw = load_draw(words_ptr, words_stride)
            words = noise_words(chunk * (CHUNK // 4) + tl.arange(0, CHUNK // 4), draw)
            arrival, last = arrivals(halvings, words, peak)
            best = tl.min(tl.where(arrival <= last, token, NO_TOKEN), 0)
            if best < tl.max(tl.where(arrival <= last, token, -1), 0):
                none = tl.full([], float("-inf"), tl.float64)
                _, best = best_until(
                    last, arrival, token, none, best, logits_ptr, temperature, draw
                )
    tl.store(peaks_ptr + part, peak)
    tl.store(tokens_ptr + part, best)


@triton.jit(do_not_specialize=["words_stride"])
def choose_kernel(
    logits_ptr,
    words_ptr,
    table_ptr,
    out_ptr,
    failed_ptr,
    peaks_ptr,
    masses_ptr,
    tokens_ptr,
    tops_ptr,
    hot_ptr,
    logits_stride,
    words_stride,
    table_stride,
    table_width,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNKS_PADDED: tl.constexpr,
):
    """One program per row."""
    row = tl.program_id(0)
    words_ptr += row
    if load_int(words_ptr, words_stride, HISTORY_ROW) < 0:
        return
    part = tl.arange(0, CHUNKS_PADDED)
    is_part = part < CHUNKS
    part += row * CHUNKS
    peaks = tl.load(peaks_ptr + part, mask=is_part, other=float("-inf"))
    tokens = tl.load(tokens_ptr + part, mask=is_part, other=NO_TOKEN)
    peak = tl.max(peaks, 0)
    scores = peaks.to(tl.float64)
    logits_ptr += row.to(tl.int64) * logits_stride
    temperature = load_float32(words_ptr, words_stride, TEMPERATURE)
    top_k, log_min_p, top_p, truncates = load_limits(words_ptr, words_stride)
    draw = load_draw(words_ptr, words_stride)
    if (temperature > 0.0) & (top_k == 0):
        scores = score_of(tokens, tokens < NO_TOKEN, logits_ptr, temperature, draw)
    token = tl.min(tl.where(scores == tl.max(scores, 0), tokens, NO_TOKEN), 0)
    if is_sound(peak) & (temperature > 0.0) & truncates:
        source = (logits_ptr, hot_ptr + row * CHUNKS * GROUPS, temperature)
        group = tl.arange(0, CHUNKS_PADDED * GROUPS)
        is_group = group < CHUNKS * GROUPS
        group += row * CHUNKS * GROUPS
        tops = tl.load(tops_ptr + group, mask=is_group, other=float("-inf"))
        total = tl.full([], 0.0, tl.float64)
        if (top_p < 1.0) & (top_k == 0) & (log_min_p == float("-inf")):
            masses = tl.load(masses_ptr + part, mask=is_part & is_sound(peaks), other=0.0)
            total = tl.sum((masses * tl.exp2((peaks - peak) * LOG2E)).to(tl.float64), 0)
        limits = (top_k, log_min_p, top_p)
        token = choose_among(source, tops, peak, token, total, limits, draw, VOCAB)
    table = (table_ptr, table_stride, table_width)
    store_token(
        token, is_sound(peak), words_ptr, words_stride, table, out_ptr + row, failed_ptr + row
    )


@triton.jit
def choose_among(source, tops, peak, token, total, limits, draw, VOCAB: tl.constexpr):
    """The token drawn from those that the limits keep.

    `token` is the best noisy one of the whole row, and `total` the row's rough mass, each where
    summarise_kernel could tell it.
    """
    logits_ptr, hot_ptr, temperature = source
    top_k, log_min_p, top_p = limits
    level = raised(peak.to(tl.float64) + log_min_p)
    if top_k > 0:
        ones = tl.full(tops.shape, 1.0, tl.float32)
        level = highest_level(tops, ones, source, 0, level, peak, top_k, True, VOCAB)
    num_hot = list_hot(tops, level, hot_ptr)
    if top_k > 0:
        level = highest_level(tops, tops, source, num_hot, level, peak, top_k, False, VOCAB)
    if (top_p < 1.0) & ((top_k > 0) | (log_min_p > float("-inf"))):
        total = mass_before(source, num_hot, level, NO_TOKEN, peak, VOCAB)
    is_drawn = top_k == 0
    if is_drawn:
        is_drawn = scaled(tl.load(logits_ptr + token), temperature) >= level
    limit_x = level
    limit_token = tl.full([], NO_TOKEN, tl.int32)
    is_kept = is_drawn & (top_p >= 1.0)
    while not is_kept:
        if not is_drawn:
            token = draw_before(source, num_hot, limit_x, limit_token, peak, draw, VOCAB)
            is_drawn = True
        is_kept = top_p >= 1.0
        if not is_kept:
            x = scaled(tl.load(logits_ptr + token), temperature)
            num_hot = list_hot(tops, x, hot_ptr)
            excess = mass_before(source, num_hot, x, token, peak, VOCAB) - top_p * total
            if tl.abs(excess) < total * ROUGH_MASS_ERROR:
                excess = exact_excess(source, level, x, token, peak, top_p, VOCAB)
            is_kept = excess < 0.0
            is_drawn = is_kept
            limit_x = x
            limit_token = token
            if (not is_kept) & (num_hot > TILE // GROUP):
                weights = tl.exp2((tops - peak) * LOG2E)
                goal = (top_p * total * (1.0 + ROUGH_MASS_ERROR)).to(tl.float32)
                bound = highest_level(tops, weights, source, 0, x, peak, goal, True, VOCAB)
                if bound > x:
                    limit_x = bound
                    limit_token = tl.full([], NO_TOKEN, tl.int32)
                    num_hot = list_hot(tops, bound, hot_ptr)
    return token
