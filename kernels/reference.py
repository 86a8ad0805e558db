"""What the kernels mean: plain PyTorch, one obvious step after the other, for any device.

Shapes and layouts are those of the kernels. A KV cache is [2, num_blocks, block_size,
num_kv_heads, head_size], keys then values; slot = block_id * block_size + offset.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def write_kv(k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Write k, v [num_tokens, num_kv_heads, head_size] to their slots; slot -1 writes nothing.

    `slot_mapping` is int64 [num_tokens]; no slot but -1 stands twice.
    """
    rows = (slot_mapping >= 0).nonzero().squeeze(1)
    if len(rows) < len(slot_mapping):
        k, v, slot_mapping = k[rows], v[rows], slot_mapping[rows]
    for side, new in zip(kv_cache.unbind(0), (k, v), strict=True):
        side.view(-1, *new.shape[1:]).index_copy_(0, slot_mapping, new)


def move_blocks(source: Tensor, target: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """Copy blocks `sources` of one pool to blocks `destinations` of another, int64 [num_pairs].

    Pools are [planes, num_blocks, ...]. Every block is read before any is written; no destination
    stands twice.
    """
    target.index_copy_(1, destinations, source.index_select(1, sources))


def copy_blocks(pool: Tensor, sources: Tensor, destinations: Tensor) -> None:
    """move_blocks within one pool."""
    move_blocks(pool, pool, sources, destinations)


@dataclass(frozen=True)
class AttentionResult:
    """Attention in float64, with what its error bound needs; all [num_tokens, num_heads, ...]."""

    out: Tensor
    """[..., head_size]"""
    lse: Tensor
    """[...]: natural log of the sum of the exponentials of the visible scores."""
    weighted_values: Tensor
    """[..., head_size]: sum of p_j |v_j|."""
    score_magnitude: Tensor
    """[...]: largest sum of |q_i k_ji|, times the scale, over the visible keys."""
    num_keys: Tensor
    """[...]: visible keys."""

    def error_bound(
        self,
        *,
        accumulate: torch.dtype,
        store: torch.dtype,
        head_size: int,
        soft_cap: float = 0.0,
    ) -> Tensor:
        """Largest |computed - exact| of each output, to first order in the roundoffs, doubled.

        For scores, softmax and sums in `accumulate` (round to nearest, any order of summation,
        weights computed as exp of a difference, partial results rescaled at most once for 16 keys),
        with weights and partial outputs rounded to `store`. Inputs are taken as exact.

        Let u be the roundoff of `accumulate`. A score is off by at most
        d = (head_size + 4) u * score_magnitude (Higham 2002, 3.1; the scale and the difference to
        the maximum are among the 4), with a soft cap 8u * soft_cap more; a weight by the relative
        d + 4u for exp; the sums over the keys add num_keys u, and the rescalings 6u each. The
        weights stand in numerator and denominator, hence twice.
        """
        u, u_store = torch.finfo(accumulate).eps / 2, torch.finfo(store).eps / 2
        score = (head_size + 4) * u * self.score_magnitude + 8 * u * soft_cap
        weight = score + (4 + 1.5 * self.num_keys + 6) * u
        relative = 2 * weight + 2 * u_store
        return 2 * (relative[..., None] * self.weighted_values + u_store * self.out.abs())


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> AttentionResult:
    """Causal attention of one sequence's last rows, in float64.

    q [num_rows, num_heads, head_size] stands at the last num_rows positions of k, v
    [num_keys, num_kv_heads, head_size]. A row at position p sees (p - sliding_window, p], or
    all up to p if sliding_window is 0. [num_heads] alibi_slopes: slope * (key - query) is added to
    the scores, after the soft cap; sinks: one more score that every row sees, without a value.
    """
    num_rows, num_heads, _ = q.shape
    num_keys, num_kv_heads, _ = k.shape
    q = q.double().transpose(0, 1)
    k, v = (
        side.double().transpose(0, 1).repeat_interleave(num_heads // num_kv_heads, 0)
        for side in (k, v)
    )
    scores = q @ k.mT * scale
    magnitude = q.abs() @ k.abs().mT * abs(scale)
    if soft_cap:
        scores = torch.tanh(scores / soft_cap) * soft_cap
    queries = torch.arange(num_keys - num_rows, num_keys, device=q.device)[:, None]
    keys = torch.arange(num_keys, device=q.device)
    if alibi_slopes is not None:
        bias = alibi_slopes.double()[:, None, None] * (keys - queries)
        scores, magnitude = scores + bias, magnitude + bias.abs()
    visible = (keys <= queries) & (keys > queries - (sliding_window or num_keys))
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        sink = sinks.double()[:, None, None].expand(-1, num_rows, 1)
        scores = torch.cat([scores, sink], -1)
    weights = scores.softmax(-1)[..., :num_keys]
    return AttentionResult(
        out=(weights @ v).transpose(0, 1),
        lse=scores.logsumexp(-1).transpose(0, 1),
        weighted_values=(weights @ v.abs()).transpose(0, 1),
        score_magnitude=magnitude.masked_fill(~visible, 0).amax(-1).transpose(0, 1),
        num_keys=visible.sum(-1)[:, None].expand(-1, num_heads),
    )
