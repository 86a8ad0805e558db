"""Which tokens of a row min_p, top_k and top_p keep, without sorting them.

Tokens stand in the order of engine/token_order.py: the larger logit first, of equal ones the lower
id. What is kept are the first tokens, up to some token. Those that reach a level lie in the groups
of GROUP tokens whose largest logit does, the hot groups; only these are read.

min_p gives a level outright. top_k's is bisected: the k-th largest of the groups' maxima bounds it
from below. top_p needs none: the best noisy token of all is the best of the nucleus if it lies in
it, and it does where the mass of the tokens before it is below p; if not, the nucleus lies before
that token, and so does the next to be tried. (Sampling by rejection, as FlashInfer does it; as our
noise is a function of the token, the outcome is the one of the plain definition.) The masses of the
groups' maxima may show that it lies yet further before.
"""

import triton
import triton.language as tl

from pagetwin.kernels.sampling_noise import (
    LOG2E,
    NO_TOKEN,
    arrivals,
    best_until,
    margin,
    noise_words,
    scaled,
)

GROUP = tl.constexpr(64)
TILE = tl.constexpr(4096)
"""Tokens of hot groups that are looked at at once."""
ROUGH_MASS_ERROR = tl.constexpr(2e-5)
"""More than a row's rough mass, and rough_mass, can be off, relative to the row's mass. A term is
off by some 2**-24 times its depth, which is small where the mass is, and sums have few levels."""


@triton.jit
def order_key(x):
    """An int32 that grows as the float32 x does; its own inverse, but for the types."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # + 0.0 makes -0.0 equal to 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_value(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def raised(x):
    """The lowest float32 that is not below the float64 x."""
    near = x.to(tl.float32)
    return tl.where(near.to(tl.float64) < x, key_value(order_key(near) + 1), near)


@triton.jit
def rough_mass(halvings):
    """Sum of 2**-halvings, float32, within ROUGH_MASS_ERROR of it."""
    return tl.sum(tl.exp2(-halvings), 0)


@triton.jit
def list_hot(tops, level, hot_ptr):
    """Writes the groups that reach the level, ascending; returns how many they are."""
    hot = (tops >= level) & (tops > float("-inf"))
    place = tl.cumsum(hot.to(tl.int32), 0) - 1
    tl.debug_barrier()  # others may still read the last list
    tl.store(hot_ptr + place, tl.arange(0, tops.shape[0]), mask=hot)
    tl.debug_barrier()
    return tl.sum(hot.to(tl.int32), 0)


@triton.jit
def load_hot(row, start, num_hot, VOCAB: tl.constexpr):
    """Token ids and scaled logits, [TILE], of the hot groups from `start` on; the rest is -inf.

    `row` is its logits, its list of hot groups, and its temperature.
    """
    logits_ptr, hot_ptr, temperature = row
    lane = tl.arange(0, TILE)
    slot = start + lane // GROUP
    group = tl.load(hot_ptr + slot, mask=slot < num_hot, other=0)
    token = group * GROUP + lane % GROUP
    is_token = (slot < num_hot) & (token < VOCAB)
    logit = tl.load(logits_ptr + token, mask=is_token, other=float("-inf"))
    return token, scaled(logit, temperature)


@triton.jit
def is_before(x, token, limit_x, limit_token):
    return (x > limit_x) | ((x == limit_x) & (token < limit_token))


@triton.jit
def count_hot(row, num_hot, level, VOCAB: tl.constexpr):
    """How many tokens reach the level, which lists the hot groups or is above the one that did."""
    count = 0
    for start in range(0, num_hot, TILE // GROUP):
        _, x = load_hot(row, start, num_hot, VOCAB)
        count += tl.sum((x >= level).to(tl.int32), 0)
    return count


@triton.jit
def mass_before(row, num_hot, limit_x, limit_token, peak, VOCAB: tl.constexpr):
    """The rough mass, float64, of the tokens before the limit, which has listed the hot groups."""
    total = tl.full([], 0.0, tl.float64)
    for start in range(0, num_hot, TILE // GROUP):
        token, x = load_hot(row, start, num_hot, VOCAB)
        before = is_before(x, token, limit_x, limit_token)
        total += rough_mass(tl.where(before, (peak - x) * LOG2E, float("inf"))).to(tl.float64)
    return total


@triton.jit
def exact_excess(row, level, x, token, peak, top_p, VOCAB: tl.constexpr):
    """The mass before a token less top_p of all that reaches the level, from the whole row."""
    logits_ptr, _, temperature = row
    before = tl.full([], 0.0, tl.float64)
    total = tl.full([], 0.0, tl.float64)
    for start in range(0, VOCAB, TILE):
        others = start + tl.arange(0, TILE)
        logit = tl.load(logits_ptr + others, mask=others < VOCAB, other=float("-inf"))
        value = scaled(logit, temperature)
        # The softmax's terms in engine/logits.py.
        term = tl.exp(value.to(tl.float64) - peak.to(tl.float64))
        total += tl.sum(tl.where(value >= level, term, 0.0), 0)
        before += tl.sum(tl.where(is_before(value, others, x, token), term, 0.0), 0)
    return before - top_p * total


@triton.jit
def draw_before(row, num_hot, limit_x, limit_token, peak, draw, VOCAB: tl.constexpr):
    """The token of the largest noisy logit among those before the limit; there must be one."""
    logits_ptr, hot_ptr, temperature = row
    best_score = tl.full([], float("-inf"), tl.float64)
    best_token = tl.full([], NO_TOKEN, tl.int32)
    quarter = tl.arange(0, TILE // 4)
    for start in range(0, num_hot, TILE // GROUP):
        token, x = load_hot(row, start, num_hot, VOCAB)
        slot = start + quarter // (GROUP // 4)
        group = tl.load(hot_ptr + slot, mask=slot < num_hot, other=0)
        words = noise_words(group * (GROUP // 4) + quarter % (GROUP // 4), draw)
        before = is_before(x, token, limit_x, limit_token)
        halvings = tl.where(before, (peak - x) * LOG2E, float("inf"))
        arrival, last = arrivals(halvings, words, peak)
        # What arrives after the best so far is no rival of it.
        best_halvings = (peak.to(tl.float64) - best_score).to(tl.float32) * LOG2E
        last = tl.minimum(last, tl.exp2(tl.minimum(best_halvings, 126.0)) * margin(peak))
        best_score, best_token = best_until(
            last, arrival, token, best_score, best_token, logits_ptr, temperature, draw
        )
    return best_token


@triton.jit
def highest_level(
    tops, weights, row, num_hot, level, peak, goal, OF_GROUPS: tl.constexpr, VOCAB: tl.constexpr
):
    """The highest level, of `level` and above, whose reach is no less than the goal.

    Either the reach is the weight of the groups whose maxima reach the level; then any level will
    do whose reach is not much more. Or it is the number of tokens in the hot groups, which are
    those of `level`; then it is the goal, but for tokens tied with the last.
    """
    low = order_key(level).to(tl.int64) - 1
    high = order_key(peak).to(tl.int64) + 1
    enough = goal
    if OF_GROUPS:
        enough = goal * 1.125
        # Most floats lie between -inf and the lowest of them.
        lowest = tl.min(tl.where(tops > float("-inf"), tops, float("inf")), 0)
        if tl.sum(tl.where(tops >= lowest, weights, 0.0), 0) >= goal:
            low = tl.maximum(low, order_key(lowest).to(tl.int64))
    reach = enough + 1
    while (reach > enough) & (high - low > 1):
        middle = low + (high - low) // 2
        value = key_value(middle.to(tl.int32))
        if OF_GROUPS:
            reaching = tl.sum(tl.where(tops >= value, weights, 0.0), 0)
        else:
            reaching = count_hot(row, num_hot, value, VOCAB)
        if reaching >= goal:
            low = middle
            reach = reaching
        else:
            high = middle
    return tl.maximum(key_value(low.to(tl.int32)), level)
