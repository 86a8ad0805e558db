"""The noise of an engine that declares it: the documented definition, once more, in numpy.

An engine whose noise is known draws argmax(logits / T + gumbel), where the standard Gumbel number
of token v is made of word v % 4 of the Philox4x32-10 block with the counter (v // 4, position,
sample index, stream). The key is the request's seed, in stream 0; without one, in stream 1, the
first eight bytes (little endian) of SHA-256 of "engine seed:request id". The position counts from
the start of the prompt.

Source: Salmon, Moraes, Dror, Shaw, Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pagetwin.engine.request import Request

Words = NDArray[np.uint64]

_WORD = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


def known_noise(
    request: Request, *, sample_index: int, output_index: int, engine_seed: int, vocab_size: int
) -> NDArray[np.float64]:
    """Gumbel noise [vocab_size] of the request's output token `output_index`."""
    seed = request.sampling_params.seed
    if seed is None:
        name = f"{engine_seed}:{request.request_id}".encode()
        key, stream = int.from_bytes(hashlib.sha256(name).digest()[:8], "little"), 1
    else:
        key, stream = seed % 2**64, 0
    blocks = np.arange(-(-vocab_size // 4), dtype=np.uint64)
    position = request.num_prompt_tokens + output_index
    fixed = [np.full_like(blocks, word) for word in (position, sample_index, stream)]
    words = philox([blocks, *fixed], (key & 0xFFFFFFFF, key >> 32))
    uniform = (words.T.reshape(-1)[:vocab_size] + 0.5) * 2.0**-32
    return np.asarray(-np.log(-np.log(uniform)))


def philox(counter: list[Words], key: tuple[int, int]) -> Words:
    """Philox4x32-10 of counters (four rows of 32-bit words) under one key: words [4, blocks]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (second >> _SHIFT) ^ c1 ^ np.uint64(k0),
            second & _WORD,
            (first >> _SHIFT) ^ c3 ^ np.uint64(k1),
            first & _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3])
