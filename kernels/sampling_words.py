"""What a logits row asks of the sampling kernels: int32 words that a step copies in one piece.

The words of R rows are a tensor [NUM_WORDS, R], contiguous along R. A float32 is held by its bits,
a float64 by two words, the lower half first. Each name below is the index of a (first) word.
"""

import triton
import triton.language as tl

HISTORY_ROW = tl.constexpr(0)
"""Row of the token table that begins with the tokens before the one drawn. Below 0: the logits row
is padding, and nothing is read or written for it."""
TABLE_ROW = tl.constexpr(1)
"""Row of the token table that takes the drawn token; below 0: none does."""
NUM_TOKENS = tl.constexpr(2)
"""How many tokens come before the drawn one: its position in the table row, and in the noise."""
PROMPT_LEN = tl.constexpr(3)
"""How many of them are the prompt's."""
KEY_LOW = tl.constexpr(4)
"""With the next three, what keys the noise: unsigned words, see engine/noise.py."""
KEY_HIGH = tl.constexpr(5)
SAMPLE_INDEX = tl.constexpr(6)
STREAM = tl.constexpr(7)
TEMPERATURE = tl.constexpr(8)
"""float32; 0: greedy, and the noise and the four limits below are not looked at."""
TOP_K = tl.constexpr(9)
"""0: off."""
LOG_MIN_P = tl.constexpr(10)
"""float64, the logarithm of min_p; -inf: off."""
TOP_P = tl.constexpr(12)
"""float64; 1: off."""
REPETITION = tl.constexpr(14)
"""float32, the repetition penalty; 1: off."""
FREQUENCY = tl.constexpr(15)
"""float64; 0: off."""
PRESENCE = tl.constexpr(17)
"""float64; 0: off."""
NUM_WORDS = 19


@triton.jit
def load_int(words_ptr, stride, INDEX: tl.constexpr):
    """`words_ptr` stands at the row's first word."""
    return tl.load(words_ptr + INDEX * stride)


@triton.jit
def load_float32(words_ptr, stride, INDEX: tl.constexpr):
    return tl.load(words_ptr + INDEX * stride).to(tl.float32, bitcast=True)


@triton.jit
def load_float64(words_ptr, stride, INDEX: tl.constexpr):
    low = tl.load(words_ptr + INDEX * stride).to(tl.uint32, bitcast=True).to(tl.int64)
    high = tl.load(words_ptr + (INDEX + 1) * stride).to(tl.int64)
    return ((high << 32) | low).to(tl.float64, bitcast=True)
