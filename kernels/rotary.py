"""Rotary positions, alone or with all else that lies between the projection and the cache (Triton).

Between `qkv = x W` and attention each head of q and k may be normalised, then is turned to its
position, and keys and values go to their slots. qk_norm_rope_write does it in one pass over qkv,
and gives the bits of rms_norm, rope and write_kv one after the other: it computes what they do, in
the same order. No product is fused with a sum (enable_fp_fusion), so rope has the reference's bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagetwin.kernels.launch import Launcher
from pagetwin.kernels.norm import normalised, row_scale
from pagetwin.kernels.pdl import start_next, wait_for_previous

Q_GROUP, KV_GROUP = 16, 8
"""Heads of one program, at most."""
NUM_WARPS = 4


@triton.jit
def load_turn(cos_sin_ptr, positions_ptr, token, ROTARY: tl.constexpr):
    """The cosines and sines of a token's position, each [1, ROTARY / 2 padded]."""
    HALF: tl.constexpr = ROTARY // 2
    pair = tl.arange(0, triton.next_power_of_2(HALF))[None, :]
    row = cos_sin_ptr + tl.load(positions_ptr + token) * ROTARY
    cos = tl.load(row + pair, mask=pair < HALF)
    sin = tl.load(row + HALF + pair, mask=pair < HALF)
    return cos, sin


@triton.jit
def turn_heads(
    source,
    target,
    num_heads,
    cos,
    sin,
    weight_ptr,
    eps,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_NORM: tl.constexpr,
    COPIES: tl.constexpr,
):
    """Turn up to GROUP heads of one token, HEAD values each, from `source` to `target`.

    COPIES: they are different places, so what does not turn must be moved, too.
    """
    HALF: tl.constexpr = ROTARY // 2
    STEP: tl.constexpr = 2 if INTERLEAVED else 1
    PARTNER: tl.constexpr = 1 if INTERLEAVED else HALF
    REST: tl.constexpr = HEAD - ROTARY
    head = tl.arange(0, GROUP)
    is_head = head < num_heads
    start = head[:, None] * HEAD
    pair = tl.arange(0, triton.next_power_of_2(HALF))[None, :]
    inside = is_head[:, None] & (pair < HALF)
    first = pair * STEP
    second = first + PARTNER
    x1 = tl.load(source + start + first, mask=inside, other=0.0)
    x2 = tl.load(source + start + second, mask=inside, other=0.0)
    if HAS_NORM:
        weight1 = tl.load(weight_ptr + first, mask=pair < HALF)
        weight2 = tl.load(weight_ptr + second, mask=pair < HALF)
        scale = row_scale(source + head * HEAD, is_head, eps, HEAD)[:, None]
        x1, x2 = normalised(x1, scale, weight1), normalised(x2, scale, weight2)
    a, b = x1.to(tl.float32), x2.to(tl.float32)
    if not COPIES:
        # In place: no warp may write what another still has to read.
        tl.debug_barrier()
    tl.store(target + start + first, (a * cos - b * sin).to(x1.dtype), mask=inside)
    tl.store(target + start + second, (b * cos + a * sin).to(x1.dtype), mask=inside)
    if REST > 0 and (HAS_NORM or COPIES):
        other = ROTARY + tl.arange(0, triton.next_power_of_2(REST))[None, :]
        in_rest = is_head[:, None] & (other < HEAD)
        x3 = tl.load(source + start + other, mask=in_rest, other=0.0)
        if HAS_NORM:
            x3 = normalised(x3, scale, tl.load(weight_ptr + other, mask=other < HEAD))
        tl.store(target + start + other, x3, mask=in_rest)


@triton.jit
def rope_kernel(
    x_ptr,
    positions_ptr,
    cos_sin_ptr,
    token_stride,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per token and GROUP heads."""
    start_next(PDL)
    token = tl.program_id(0).to(tl.int64)
    cos, sin = load_turn(cos_sin_ptr, positions_ptr, token, ROTARY)
    wait_for_previous(PDL)
    first = tl.program_id(1) * GROUP
    heads = x_ptr + token * token_stride + first * HEAD
    turn_heads(
        heads,
        heads,
        NUM_HEADS - first,
        cos,
        sin,
        x_ptr,
        0.0,
        GROUP,
        HEAD,
        ROTARY,
        INTERLEAVED,
        HAS_NORM=False,
        COPIES=False,
    )


@triton.jit
def qk_norm_rope_write_kernel(
    qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_sin_ptr,
    positions_ptr,
    cache_ptr,
    slots_ptr,
    eps,
    qkv_stride,
    side_stride,
    block_stride,
    token_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    Q_GROUP: tl.constexpr,
    KV_GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HAS_NORM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One program per token and Q_GROUP query heads, or the keys and values of KV_GROUP heads."""
    start_next(PDL)
    Q_PARTS: tl.constexpr = triton.cdiv(NUM_HEADS, Q_GROUP)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    row = qkv_ptr + token * qkv_stride
    cos, sin = load_turn(cos_sin_ptr, positions_ptr, token, ROTARY)
    slot = tl.load(slots_ptr + token)
    wait_for_previous(PDL)
    if part < Q_PARTS:
        first = part * Q_GROUP
        turn_heads(
            row + first * HEAD,
            row + first * HEAD,
            NUM_HEADS - first,
            cos,
            sin,
            q_weight_ptr,
            eps,
            Q_GROUP,
            HEAD,
            ROTARY,
            INTERLEAVED,
            HAS_NORM,
            COPIES=False,
        )
    elif slot >= 0:
        first = (part - Q_PARTS) * KV_GROUP
        num_heads = tl.minimum(NUM_KV_HEADS - first, KV_GROUP)
        source = row + (NUM_HEADS + first) * HEAD
        target = cache_ptr + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * token_stride
        target += first * HEAD
        column = tl.arange(0, triton.next_power_of_2(KV_GROUP * HEAD))
        inside = column < num_heads * HEAD
        v = tl.load(source + NUM_KV_HEADS * HEAD + column, mask=inside)
        tl.store(target + side_stride + column, v, mask=inside)
        turn_heads(
            source,
            target,
            num_heads,
            cos,
            sin,
            k_weight_ptr,
            eps,
            KV_GROUP,
            HEAD,
            ROTARY,
            INTERLEAVED,
            HAS_NORM,
            COPIES=True,
        )


_rope = Launcher(rope_kernel, enable_fp_fusion=False)
_qk_norm_rope_write = Launcher(qk_norm_rope_write_kernel, enable_fp_fusion=False)


def rope(x: Tensor, positions: Tensor, cos_sin: Tensor, interleaved: bool = False) -> None:
    """As reference_layers.rope, in place; the heads of a token lie together.

    x [T, num_heads, head_size], positions int64 [T], cos_sin float32 [num_positions, rotary_size].
    """
    num_tokens, num_heads, head_size = x.shape
    if x.stride()[1:] != (head_size, 1):
        raise ValueError(
            f"rope: x has strides {x.stride()}, but a token's heads must lie together: the last "
            f"two must be ({head_size}, 1); pass a contiguous tensor"
        )
    if not num_tokens:
        return
    group = min(Q_GROUP, triton.next_power_of_2(num_heads))
    _rope(
        (num_tokens, triton.cdiv(num_heads, group), 1),
        (x, positions, cos_sin, x.stride(0)),
        (num_heads, group, head_size, cos_sin.shape[1], interleaved),
        NUM_WARPS,
    )


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
    """As reference_layers.qk_norm_rope_write.

    qkv [T, (num_heads + 2 num_kv_heads) * head_size], rows of any stride: the queries are changed
    in place, keys and values are left as they were. q_weight, k_weight [head_size], or None for no
    normalisation. kv_cache [2, num_blocks, block_size, num_kv_heads, head_size], the heads of a
    token together; slot_mapping int64 [T], negative for no write.
    """
    num_tokens, width = qkv.shape
    _, _, block_size, num_kv_heads, head_size = kv_cache.shape
    if kv_cache.stride()[3:] != (head_size, 1):
        raise ValueError(
            f"qk_norm_rope_write: kv_cache has strides {kv_cache.stride()}, but a token's heads "
            f"must lie together: the last two must be ({head_size}, 1)"
        )
    if not num_tokens:
        return
    num_heads = width // head_size - 2 * num_kv_heads
    q_group = min(Q_GROUP, triton.next_power_of_2(num_heads))
    kv_group = min(KV_GROUP, triton.next_power_of_2(num_kv_heads))
    num_parts = triton.cdiv(num_heads, q_group) + triton.cdiv(num_kv_heads, kv_group)
    _qk_norm_rope_write(
        (num_tokens, num_parts, 1),
        (
            qkv,
            q_weight,
            k_weight,
            cos_sin,
            positions,
            kv_cache,
            slot_mapping,
            eps,
            qkv.stride(0),
            kv_cache.stride(0),
            kv_cache.stride(1),
            kv_cache.stride(2),
        ),
        (
            num_heads,
            num_kv_heads,
            q_group,
            kv_group,
            head_size,
            cos_sin.shape[1],
            interleaved,
            q_weight is not None,
            block_size,
        ),
        NUM_WARPS,
    )


rope_op = torch.library.custom_op("pagetwin::rope", rope, mutates_args={"x"})
rope_op.register_fake(lambda x, positions, cos_sin, interleaved=False: None)
qk_norm_rope_write_op = torch.library.custom_op(
    "pagetwin::qk_norm_rope_write", qk_norm_rope_write, mutates_args={"qkv", "kv_cache"}
)
qk_norm_rope_write_op.register_fake(lambda *args: None)
