"""The Gumbel noise of engine/noise.py inside a kernel, and the largest noisy logit of a tile.

The noise is float64, two logarithms a token, which a GPU computes slowly. So all tokens of a tile
are compared by a float32 estimate of known error, and only those near the largest one in float64:
as a rule a single one.
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
ROUGH_ERROR = tl.constexpr(1e-5)
"""How far rough_gumbel is from gumbel at most; each of the 2**32 words is nearer."""
_WORD_STEP = tl.constexpr(2.0**-32)
_HALF_STEP = tl.constexpr(2.0**-33)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_draw(words_ptr, stride):
    """What keys a row's noise: the Philox key, int64, and the last three counter words."""
    low = load_int(words_ptr, stride, KEY_LOW).to(tl.uint32, bitcast=True).to(tl.int64)
    key = (load_int(words_ptr, stride, KEY_HIGH).to(tl.int64) << 32) | low
    position = load_int(words_ptr, stride, NUM_TOKENS)
    sample_index = load_int(words_ptr, stride, SAMPLE_INDEX)
    stream = load_int(words_ptr, stride, STREAM)
    return key, position, sample_index, stream


@triton.jit
def noise_words(block, draw):
    """The words, uint32 [4 * n], of the tokens of `block`, int32 [n]: four tokens each."""
    key, position, sample_index, stream = draw
    w0, w1, w2, w3 = tl.philox(key, block, position, sample_index, stream)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # so that they lie in the tokens' order
    return tl.reshape(words, [4 * block.shape[0]])


@triton.jit
def noise_word(token, draw):
    """The word of one token."""
    key, position, sample_index, stream = draw
    w0, w1, w2, w3 = tl.philox(key, token // 4, position, sample_index, stream)
    place = token % 4
    return tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))


@triton.jit
def gumbel(word):
    """float64, operation for operation as engine/noise.py."""
    uniform = (word.to(tl.float64) + 0.5) * _WORD_STEP
    return -tl.log(-tl.log(uniform))


@triton.jit
def rough_gumbel(word):
    """float32, within ROUGH_ERROR of `gumbel`, also where the uniform number is close to 0 or 1."""
    upper = word >= 0x80000000
    steps = tl.where(upper, word ^ 0xFFFFFFFF, word)
    edge = steps.to(tl.float32) * _WORD_STEP + _HALF_STEP  # distance to the nearer of 0 and 1
    exponential = tl.log2(tl.where(upper, 1.0 - edge, edge)) * -_LN2
    # -log(1 - edge), where the subtraction would lose the small edge's digits.
    series = 1.0 + edge * (0.5 + edge * (0.33333334 + edge * (0.25 + edge * 0.2)))
    exponential = tl.where(upper & (edge < 0.0625), edge * series, exponential)
    return tl.log2(exponential) * -_LN2


@triton.jit
def scaled(logit, temperature):
    return tl.div_rn(logit, temperature)


@triton.jit
def largest_score(rough, token, best_score, best_token, logits_ptr, temperature, draw):
    """The better of the best so far and a tile's best: its score, float64, and token.

    `rough` float32 [n]: logit / temperature + rough_gumbel, in float32, of the tokens `token`;
    -inf where a token is not to be chosen. Of equal scores the lowest token's counts as larger.
    """
    top = tl.max(rough, 0)
    # Twice what an estimate may be off: by the noise's error, and by a few roundings of numbers
    # that the noise (at most 23) does not dwarf.
    margin = 4 * ROUGH_ERROR + (tl.abs(top) + 32.0) * 2.0**-20
    floor = tl.maximum(top, best_score.to(tl.float32)) - margin
    near = (rough >= floor) & (rough > float("-inf"))
    rival = tl.min(tl.where(near, token, NO_TOKEN), 0)
    while rival < NO_TOKEN:
        word = noise_word(rival, draw)
        score = gumbel(word) + scaled(tl.load(logits_ptr + rival), temperature).to(tl.float64)
        better = (score > best_score) | ((score == best_score) & (rival < best_token))
        best_score = tl.where(better, score, best_score)
        best_token = tl.where(better, rival, best_token)
        rival = tl.min(tl.where(near & (token > rival), token, NO_TOKEN), 0)
    return best_score, best_token
