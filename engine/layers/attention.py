"""Decides what becomes of a layer's queries, keys and values: rotated, cached, attended to."""

from torch import Tensor, nn

from pagetwin.engine.attention.metadata import ForwardContext, SampledRows
from pagetwin.engine.layers.norm import RMSNorm
from pagetwin.kernels import reference_layers, rotary
from pagetwin.kernels.dispatch import uses_triton


class Attention(nn.Module):
    """One layer's attention over the paged cache.

    `q_norm` and `k_norm` normalise each head of the queries and keys before they are rotated; a
    model has both or neither.
    """

    def __init__(
        self,
        layer_index: int,
        num_heads: int,
        head_size: int,
        *,
        scale: float,
        sliding_window: int,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.sliding_window = sliding_window
        self.q_norm = q_norm
        self.k_norm = k_norm

    def forward(
        self,
        qkv: Tensor,
        cos_sin: Tensor,
        positions: Tensor,
        context: ForwardContext,
        sampled: SampledRows | None = None,
    ) -> Tensor:
        """Projections [T, (num_heads + 2 num_kv_heads) * head_size] to [T, num_heads * head_size].

        `cos_sin` is RotaryEmbedding's table, positions int64 [T]. Keys and values go to the
        step's slots of the layer's cache; `qkv` is changed. Only `sampled` rows attend, if given.
        """
        kv_cache = context.kv_caches[self.layer_index]
        kernels = rotary if uses_triton(qkv) else reference_layers
        kernels.qk_norm_rope_write(
            qkv,
            self.q_norm.weight if self.q_norm is not None else None,
            self.k_norm.weight if self.k_norm is not None else None,
            self.q_norm.eps if self.q_norm is not None else 0.0,
            cos_sin,
            positions,
            kv_cache,
            context.metadata.slot_mapping,
        )
        q = qkv.view(len(qkv), -1, self.head_size)[:, : self.num_heads]
        metadata = context.metadata
        if sampled is not None:
            q, metadata = q[sampled.index], sampled.metadata
            if not len(q):
                return q.flatten(-2)
        attended = context.backend.forward(
            q,
            kv_cache,
            metadata,
            scale=self.scale,
            sliding_window=self.sliding_window,
        )
        return attended.flatten(-2)
