"""Decides what a layer asks of the attention backend: its cache, its scale, its window."""

from torch import Tensor, nn

from pagetwin.engine.attention.metadata import ForwardContext


class Attention(nn.Module):
    """One layer's attention over the paged cache; the backend does the work."""

    def __init__(self, layer_index: int, *, scale: float, sliding_window: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.scale = scale
        self.sliding_window = sliding_window

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
        """q [T, num_heads, head_size], k and v [T, num_kv_heads, head_size], to q's shape."""
        return context.backend.forward(
            q,
            k,
            v,
            context.kv_caches[self.layer_index],
            context.metadata,
            scale=self.scale,
            sliding_window=self.sliding_window,
        )
