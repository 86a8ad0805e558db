"""The least work that a workload can be: bytes from memory and floating-point operations.

Whatever the schedule, kernels and batches, a step reads the weights once and each cached key and
value that one of its tokens sees; every token goes through every matrix. Divided by what the
device reaches (memory copy, large matrix product) these are the two floors under a run's time.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from pagetwin.conformance.bench.workloads import Workload

if TYPE_CHECKING:
    from pagetwin.engine.models.loader import LoadedModel

Positions = NDArray[np.int64]


class ModelSizes(msgspec.Struct, frozen=True, kw_only=True):
    """What the floors must know of a model. Parameters are counted in numbers, not bytes."""

    num_layers: int
    layer_matrix_parameters: int
    """Of all layers: what a token is multiplied with."""
    last_layer_parameters: int
    """Of those, the last layer's but for keys and values: only tokens that draw need them."""
    head_parameters: int
    """Of the matrix behind the logits: read, and multiplied with, where a token is drawn."""
    weight_bytes: int
    """Of everything that a step reads whole; an embedding that only lends rows is not."""
    kv_bytes_per_token: int
    """Keys and values of all layers."""
    attention_flops_per_key: int
    """Of one token that sees one key, in one layer: two products of the head size, all heads."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """The floors of a workload, in bytes and operations."""

    min_steps: int
    """Steps in which each live sequence, at most max_num_seqs, gets one token."""
    weight_bytes: int
    """Weights read, in `min_steps` steps."""
    kv_bytes: int
    """Keys and values written once and read by tokens that decode. A prefix common to all counts
    once a step."""
    matmul_flops: int
    attention_flops: int

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes

    @property
    def flops(self) -> int:
        return self.matmul_flops + self.attention_flops


def model_sizes(loaded: "LoadedModel") -> ModelSizes:
    """Counts a model's parameters by the names that checkpoints give them."""
    spec, slots = loaded.spec, loaded.model.checkpoint_slots()
    head = slots.get("lm_head.weight", slots["model.embed_tokens.weight"])
    matrices = {n: t.numel() for n, t in slots.items() if ".layers." in n and t.ndim == 2}
    last = f".layers.{spec.num_layers - 1}."
    keys_and_values = (f"{last}self_attn.k_proj.weight", f"{last}self_attn.v_proj.weight")
    read = sum(t.numel() for n, t in slots.items() if n != "model.embed_tokens.weight")
    if "lm_head.weight" not in slots:
        read += head.numel()
    return ModelSizes(
        num_layers=spec.num_layers,
        layer_matrix_parameters=sum(matrices.values()),
        last_layer_parameters=sum(
            size
            for name, size in matrices.items()
            if last in name and not name.endswith(keys_and_values)
        ),
        head_parameters=head.numel(),
        weight_bytes=read * spec.dtype.itemsize,
        kv_bytes_per_token=(
            2 * spec.num_layers * spec.num_kv_heads * spec.head_size * spec.dtype.itemsize
        ),
        attention_flops_per_key=4 * spec.num_attention_heads * spec.head_size,
    )


def least_work(
    workload: Workload,
    sizes: ModelSizes,
    *,
    sliding_windows: Sequence[int],
    max_num_seqs: int,
    prefix_caching: bool,
) -> Work:
    """The floors of a workload that starts with an empty prefix cache.

    `sliding_windows`: per layer, the positions that a token sees; 0 = all of them.
    """
    outputs = np.array([request.num_output_tokens for request in workload])
    prompts = np.array([len(request.prompt_token_ids) for request in workload])
    end = prompts + outputs - 1  # The last token that is drawn goes through no matrix,
    common = _common_prefix(workload) if prefix_caching else 0
    first = np.full(len(workload), common)  # and a common prefix goes through them once.
    first[0] = 0
    num_drawn, num_computed = int(outputs.sum()), int((end - first).sum())
    min_steps = max(int(outputs.max()), -(-num_drawn // max_num_seqs))
    # A step needs the common prefix once, however many of its sequences see it.
    shared = common * max(0, int((outputs - 1).sum()) - (min_steps - 1))
    decoding = sum(_keys_seen(prompts, end, window) for window in sliding_windows)
    read_keys = decoding / len(sliding_windows) - shared
    # Of the last layer a token that draws nothing needs keys and values alone.
    seen = sum(_keys_seen(first, end, window) for window in sliding_windows[:-1])
    seen += _keys_seen(prompts - 1, end, sliding_windows[-1])
    skipped = (num_computed - num_drawn) * sizes.last_layer_parameters
    return Work(
        min_steps=min_steps,
        weight_bytes=min_steps * sizes.weight_bytes,
        kv_bytes=int((num_computed + read_keys) * sizes.kv_bytes_per_token),
        matmul_flops=2 * (num_computed * sizes.layer_matrix_parameters - skipped)
        + 2 * num_drawn * sizes.head_parameters,
        attention_flops=seen * sizes.attention_flops_per_key,
    )


def _common_prefix(workload: Workload) -> int:
    """Tokens that begin every prompt, at least one of each prompt left over; 0 for one alone."""
    if len(workload) < 2:
        return 0
    prompts = [request.prompt_token_ids for request in workload]
    for position, tokens in enumerate(zip(*prompts, strict=False)):
        if len(set(tokens)) > 1:
            return position
    return min(map(len, prompts)) - 1


def _keys_seen(first: Positions, end: Positions, window: int) -> int:
    """Keys of a layer that the tokens at positions [first, end) of all sequences see."""
    return int((_keys_before(end, window) - _keys_before(first, window)).sum())


def _keys_before(position: Positions, window: int) -> Positions:
    """Keys seen by the tokens in front of each position: of token p, p + 1, or the window."""
    growing = np.minimum(position, window) if window else position
    return growing * (growing + 1) // 2 + (position - growing) * window
