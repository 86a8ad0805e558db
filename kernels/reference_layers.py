"""What the kernels of a model's layers mean: plain PyTorch, for any device.

Sums and functions are computed in float32, or in float64 where the arguments are: given those, a
function here is exact enough to measure the others by.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pagetwin.kernels.reference import write_kv


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, 2019).

    The normalised values are rounded to the dtype before the weight, as in `transformers`
    LlamaRMSNorm.
    """
    y = _widen(x)
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add x to `residual` in place, rounded to its dtype; the rms_norm of the sum."""
    residual += x
    return rms_norm(residual, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last axis, rounded once."""
    wide = [_widen(tensor) for tensor in (x, weight, bias)]
    return F.layer_norm(wide[0], weight.shape, wide[1], wide[2], eps).to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[..., 2 I] to [..., I]: silu of the first half times the second, rounded once."""
    gate, up = _widen(gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def gelu_and_mul(gate_up: Tensor, approximate: str = "none") -> Tensor:
    """Likewise with gelu, exact or by "tanh"."""
    gate, up = _widen(gate_up).chunk(2, dim=-1)
    return (F.gelu(gate, approximate=approximate) * up).to(gate_up.dtype)


def rope(x: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool = False) -> None:
    """Turn the first rotary_size channels of x [T, num_heads, head_size] in place, in float32.

    As in RoFormer (Su et al., 2021). `cos_sin` [num_positions, rotary_size] has each position's
    cosines, then its sines. Channel i is paired with channel i + rotary_size / 2, as in Hugging
    Face checkpoints, or, if `interleaved`, channel 2 i with 2 i + 1, as in GPT-J.
    """
    cos, sin = cos_sin.index_select(0, positions)[:, None].chunk(2, dim=-1)
    turning = x[..., : cos_sin.shape[1]]
    if interleaved:
        first, second = turning[..., ::2], turning[..., 1::2]
    else:
        first, second = turning.chunk(2, dim=-1)
    a, b = _widen(first), _widen(second)
    turned = a * cos - b * sin, b * cos + a * sin
    first.copy_(turned[0])
    second.copy_(turned[1])


def qk_norm_rope_write(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    interleaved: bool = False,
) -> None:
    """Normalise and turn the heads of queries and keys; write keys and values to their slots.

    The rows of `qkv` hold num_heads queries, then num_kv_heads keys, then as many values. The
    queries are changed in place; what is left of the keys is not to be relied on.
    """
    num_kv_heads, head_size = kv_cache.shape[3:]
    heads = qkv.view(len(qkv), -1, head_size)
    num_heads = heads.shape[1] - 2 * num_kv_heads
    q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_weight is not None and k_weight is not None:
        q.copy_(rms_norm(q, q_weight, eps))
        k.copy_(rms_norm(k, k_weight, eps))
    rope(heads[:, : num_heads + num_kv_heads], positions, cos_sin, interleaved)
    write_kv(k, v, kv_cache, slot_mapping)


def embed_tokens(
    token_ids: Tensor,
    table: Tensor,
    token_table: Tensor | None = None,
    token_rows: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Rows of `table` [vocab_size, H] for token_ids [T].

    A negative id stands for the one that token_table [num_rows, max_model_len] has at the token's
    row and position. Where there is none either, and where an id is not in the table, the row is 0.
    """
    if token_table is not None and token_rows is not None and positions is not None:
        unknown = token_ids < 0
        found = token_table[token_rows * unknown, positions * unknown]
        token_ids = torch.where(unknown, found, token_ids)
    is_token = (token_ids >= 0) & (token_ids < len(table))
    return F.embedding(token_ids * is_token, table) * is_token[:, None]
