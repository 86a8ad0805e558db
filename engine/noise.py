"""Which random number decides which token: noise as a pure function of who draws it, and where.

Nothing here has a state. A number depends on the seed (or, without one, on the engine's seed
and the request's name), the sample index, the position of the token that is drawn, and the
token's id; so a draw is the same in any batch, any row order and after any preemption.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as
1, 2, 3; SC 2011), the one that CUDA and Triton offer, so that a kernel can draw the same words.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF

GUMBEL_RANGE = (-3.14, 22.88)
"""All noise lies within. Draws are made of 32-bit words: a token whose logit (after temperature)
is more than 26.02 below the highest one, of relative probability 5e-12, is never drawn."""


class Draw(NamedTuple):
    """What one draw over the vocabulary is keyed by; each field is an unsigned 32-bit word."""

    key_low: int
    key_high: int
    position: int
    sample_index: int
    stream: int
    """Keeps the noise of requests with a seed apart from that of requests without one."""


def draw_for(
    seed: int | None, *, engine_seed: int, request_id: str, sample_index: int, position: int
) -> Draw:
    """The key of the draw of the token at `position` (prompt tokens counted).

    With a seed of its own, a request draws the same noise under any name and in any engine.
    Since the position counts from the start of the prompt, such a request that is cut anywhere
    and resubmitted with what it had so far goes on as it would have done.
    """
    if seed is not None:
        key, stream = seed, 0
    else:
        digest = hashlib.sha256(f"{engine_seed}:{request_id}".encode()).digest()
        key, stream = int.from_bytes(digest[:8], "little"), 1
    return Draw(key & _WORD, (key >> 32) & _WORD, position, sample_index, stream)


def gumbel_noise(draws: Sequence[Draw], vocab_size: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise, float64 [num_draws, vocab_size], finite everywhere.

    Token v takes word v % 4 of the Philox block with the counter (v // 4, position, sample
    index, stream), so its noise does not depend on vocab_size. Float64, because two libraries'
    logarithms may differ in the last bit, and there that bit never decides.
    """
    columns = torch.tensor(draws, dtype=torch.int64, device=device).T[:, :, None]
    block = torch.arange(-(-vocab_size // 4), device=device)[None, :]
    words = torch.stack(_words(columns, block), dim=-1)
    return _gumbel(words.reshape(len(draws), -1)[:, :vocab_size])


def gumbel_noise_at(draws: Sequence[Draw], rows: Tensor, token_ids: Tensor) -> Tensor:
    """The entries [rows[i], token_ids[i]] of `gumbel_noise`, float64 [n]: cheaper for a few."""
    columns = torch.tensor(draws, dtype=torch.int64, device=rows.device).T[:, rows]
    words = torch.stack(_words(columns, token_ids // 4), dim=-1)
    return _gumbel(words.gather(1, (token_ids % 4)[:, None]).squeeze(1))


def _words(columns: Tensor, block: Tensor) -> tuple[Tensor, ...]:
    """The four words of each block; `columns` are the five fields of the draws."""
    key_low, key_high, position, sample_index, stream = columns
    return philox((block, position, sample_index, stream), (key_low, key_high))


def _gumbel(words: Tensor) -> Tensor:
    # In (0, 1), and exact: 33 bits fit a float64.
    uniform = words.double().add_(0.5).mul_(2.0**-32)
    return uniform.log_().neg_().log_().neg_()


def philox(counter: Sequence[Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 of int64 tensors that hold unsigned 32-bit words and broadcast together.

    Returns four int64 tensors of such words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The int64 products wrap, and shifts copy the sign; only words that are multiplied
        # next must be cleaned of the bits above 32, the others are cleaned later with them.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) ^ c1 ^ k0) & _WORD, product1
        c2, c3 = ((product0 >> 32) ^ c3 ^ k1) & _WORD, product0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1 & _WORD, c2, c3 & _WORD
