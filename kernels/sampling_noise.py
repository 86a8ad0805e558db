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
"""How far rough_exponential is off at most, relative to what it estimates."""
LOG2E = tl.constexpr(1.4426950408889634)
_WORD_STEP = tl.constexpr(2.0**-32)
_HALF_STEP = tl.constexpr(2.0**-33)
_LATE = tl.constexpr(0.693)
"""A little less than rough_exponential gives for late ones."""
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
def is_late(word):
    """Whether the uniform number is below 1/2."""
    return word < 0x80000000


@triton.jit
def rough_exponential(word):
    """-log(u), float32, within ROUGH_ERROR; where it is late, its lower bound log(2), as near."""
    edge = (word ^ 0xFFFFFFFF).to(tl.float32) * _WORD_STEP + _HALF_STEP  # 1 - u
    edge = tl.minimum(edge, 0.5)
    # -log(1 - edge) / edge, interpolated at Chebyshev's nodes of [0, 1/2].
    series = 0.39169299 + edge * (-0.04428951 + edge * 0.73137956)
    return edge * (1.00003858 + edge * (0.49617588 + edge * series))


@triton.jit
def scaled(logit, temperature):
    return tl.div_rn(logit, temperature)


@triton.jit
def score_of(token, is_token, logits_ptr, temperature, draw):
    """The noisy logit of each token, float64; -inf where there is none."""
    logit = tl.load(logits_ptr + token, mask=is_token, other=float("-inf"))
    return gumbel(noise_word(token, draw)) + scaled(logit, temperature).to(tl.float64)


@triton.jit
def margin(peak):
    """By which factor two estimates of arrivals may be off together: for ROUGH_ERROR, and for
    roundings of the scaled logits, below the peak, that are estimated from."""
    halvings = (tl.abs(peak) + 32.0) * 2.0**-21 + 4 * ROUGH_ERROR
    return tl.exp2(tl.minimum(halvings, 80.0))


@triton.jit
def arrivals(halvings, words, peak):
    """Estimates of the arrivals of a tile's tokens, float32 [n], and until when the first may be.

    `halvings` float32 [n]: log2(e) times how far each scaled logit lies below `peak`; +inf where
    the token is not to be chosen. Some token, of this tile or another, lies at the peak.
    """
    arrival = rough_exponential(words) * tl.exp2(tl.minimum(halvings, 126.0))
    first = tl.min(arrival, 0)
    if first > _LATE:
        # It may be a late one's lower bound, as where one logit leaves the others no chance.
        first = tl.min(tl.where(is_late(words), _LATEST, arrival), 0)
    return arrival, first * margin(peak)


@triton.jit
def best_until(last, arrival, token, best_score, best_token, logits_ptr, temperature, draw):
    """The better of the best so far and of the tokens that may arrive until `last`: its noisy
    logit, float64, and itself. Of equal noisy logits the lowest token's counts as larger."""
    rival = tl.min(tl.where(arrival <= last, token, NO_TOKEN), 0)
    while rival < NO_TOKEN:
        score = score_of(rival, rival < NO_TOKEN, logits_ptr, temperature, draw)
        better = (score > best_score) | ((score == best_score) & (rival < best_token))
        best_score = tl.where(better, score, best_score)
        best_token = tl.where(better, rival, best_token)
        rest = (arrival <= last) & (token > rival)
        rival = tl.min(tl.where(rest, token, NO_TOKEN), 0)
    return best_score, best_token
