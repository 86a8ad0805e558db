"""The Gumbel noise of engine/noise.py inside a kernel, and the largest noisy logit of a tile.

The largest sum of a logit x and Gumbel noise -log(e) is the smallest e / exp(x), where e is the
exponential -log(u) of a uniform u: the first arrival of a race. The sum is float64 with two
logarithms a token, which a GPU computes slowly. So the tokens' arrivals are estimated in float32,
with an error that is known, and only those that may be first are compared in float64: as a rule a
single one of a tile.
"""

import triton
import triton.language as tl

from pagetwin.kernels.sampling_words import (
    KEY_HIGH,
    KEY_LOW,
    NUM_TOKENS,
    SAMPLE_INDEX,
    STREAM,
    load_int,
)

NO_TOKEN = tl.constexpr(2**31 - 1)
ROUGH_ERROR = tl.constexpr(6e-5)
"""How far rough_exponential is from -log(u) at most, relative to it, where u >= 1/2."""
LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_WORD_STEP = tl.constexpr(2.0**-32)
_HALF_STEP = tl.constexpr(2.0**-33)
_LATEST = tl.constexpr(22.9)
"""No exponential is larger: -log(2**-33) is 22.87."""


@triton.jit
def load_draw(words_ptr, stride):
    """What keys a row's noise: the words of the Philox key, and the last three of the counter."""
    key_low = load_int(words_ptr, stride, KEY_LOW).to(tl.uint32, bitcast=True)
    key_high = load_int(words_ptr, stride, KEY_HIGH).to(tl.uint32, bitcast=True)
    position = load_int(words_ptr, stride, NUM_TOKENS).to(tl.uint32, bitcast=True)
    sample_index = load_int(words_ptr, stride, SAMPLE_INDEX).to(tl.uint32, bitcast=True)
    stream = load_int(words_ptr, stride, STREAM).to(tl.uint32, bitcast=True)
    return key_low, key_high, position, sample_index, stream


@triton.jit
def philox(block, draw):
    """Philox4x32-10: the four words, uint32, of each block of four tokens."""
    k0, k1, c1, c2, c3 = draw
    c0 = block.to(tl.uint32)
    for _ in tl.static_range(10):
        # 64-bit products of 32-bit words are single instructions.
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product1.to(tl.uint32)
        c3 = product0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def noise_words(block, draw):
    """The words, uint32 [4 * n], of the tokens of `block`, int32 [n], in the tokens' order."""
    w0, w1, w2, w3 = philox(block, draw)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [4 * block.shape[0]])


@triton.jit
def noise_word(token, draw):
    """The word of one token."""
    w0, w1, w2, w3 = philox(token // 4, draw)
    place = token % 4
    return tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))


@triton.jit
def gumbel(word):
    """float64, operation for operation as engine/noise.py."""
    uniform = (word.to(tl.float64) + 0.5) * _WORD_STEP
    return -tl.log(-tl.log(uniform))


@triton.jit
def rough_exponential(word):
    """-log(u), float32, within ROUGH_ERROR; where u < 1/2 its lower bound log(2), and False.

    Such late arrivals are first only if their logit leaves the others no chance.
    """
    edge = (word ^ 0xFFFFFFFF).to(tl.float32) * _WORD_STEP + _HALF_STEP  # 1 - u
    is_early = edge < 0.5
    # -log(1 - edge) / edge, interpolated at Chebyshev's nodes of [0, 1/2].
    series = 0.39169299 + edge * (-0.04428951 + edge * 0.73137956)
    series = 1.00003858 + edge * (0.49617588 + edge * series)
    return tl.where(is_early, edge * series, _LN2), is_early


@triton.jit
def scaled(logit, temperature):
    return tl.div_rn(logit, temperature)


@triton.jit
def largest_score(depth, words, token, peak, best_score, best_token, logits_ptr, temperature, draw):
    """The better of the best so far and a tile's best: its noisy logit, float64, and its token.

    `depth` float32 [n]: how far each scaled logit lies below `peak`; +inf where the token is not to
    be chosen. The best of the tile, or the best so far, is no worse than a token of depth 0. Of
    equal noisy logits the lowest token's counts as larger.
    """
    exponential, is_early = rough_exponential(words)
    arrival = exponential * tl.exp2(tl.minimum(depth * LOG2E, 120.0))
    first = tl.minimum(tl.min(tl.where(is_early, arrival, _LATEST), 0), _LATEST)
    best_depth = (peak.to(tl.float64) - best_score).to(tl.float32)
    first = tl.minimum(first, tl.exp2(tl.minimum(best_depth * LOG2E, 120.0)))
    # Twice what an estimate may be off: by ROUGH_ERROR, and by roundings of the scaled logits.
    margin = (tl.abs(peak) + 32.0) * 2.0**-21 + 4 * ROUGH_ERROR
    first *= tl.exp2(tl.minimum(margin, 120.0))
    near = (arrival <= first) & (depth < float("inf"))
    rival = tl.min(tl.where(near, token, NO_TOKEN), 0)
    while rival < NO_TOKEN:
        noise = gumbel(noise_word(rival, draw))
        score = noise + scaled(tl.load(logits_ptr + rival), temperature).to(tl.float64)
        better = (score > best_score) | ((score == best_score) & (rival < best_token))
        best_score = tl.where(better, score, best_score)
        best_token = tl.where(better, rival, best_token)
        rival = tl.min(tl.where(near & (token > rival), token, NO_TOKEN), 0)
    return best_score, best_token
