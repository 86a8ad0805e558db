"""How the small kernels of a model's layers are launched, for test_compiles.py."""

import triton

from pagetwin.kernels.activation import TILE, act_and_mul_kernel
from pagetwin.kernels.compiled import Resources, compile_kernel
from pagetwin.kernels.embedding import TILE as EMBEDDING_TILE
from pagetwin.kernels.embedding import embed_tokens_kernel
from pagetwin.kernels.norm import layer_norm_kernel, num_warps, rms_norm_kernel
from pagetwin.kernels.rotary import (
    KV_GROUP,
    NUM_WARPS,
    Q_GROUP,
    qk_norm_rope_write_kernel,
    rope_kernel,
)


def rms_norm(capability: int, dtype: str, size: int, *, add: bool) -> Resources:
    pointers = dict.fromkeys(["x_ptr", "residual_ptr", "weight_ptr", "out_ptr"], f"*{dtype}")
    strides = dict.fromkeys(["x_stride", "residual_stride", "out_stride"], "i32")
    return compile_kernel(
        rms_norm_kernel,
        pointers | strides | {"eps": "fp32"},
        {"SIZE": size, "ADD": add, "PDL": capability >= 90},
        aligned=[*pointers, *strides],
        capability=capability,
        num_warps=num_warps(size),
    )


def layer_norm(capability: int, dtype: str, size: int) -> Resources:
    pointers = dict.fromkeys(["x_ptr", "weight_ptr", "bias_ptr", "out_ptr"], f"*{dtype}")
    strides = dict.fromkeys(["x_stride", "out_stride"], "i32")
    return compile_kernel(
        layer_norm_kernel,
        pointers | strides | {"eps": "fp32"},
        {"SIZE": size, "PDL": capability >= 90},
        aligned=[*pointers, *strides],
        capability=capability,
        num_warps=num_warps(size),
    )


def act_and_mul(capability: int, dtype: str, activation: str) -> Resources:
    pointers = dict.fromkeys(["gate_up_ptr", "out_ptr"], f"*{dtype}")
    return compile_kernel(
        act_and_mul_kernel,
        pointers | {"row_stride": "i32"},
        {"SIZE": 3072, "ACTIVATION": activation, "TILE": TILE, "PDL": capability >= 90},
        aligned=[*pointers, "row_stride"],
        capability=capability,
    )


def rope(capability: int, dtype: str, head_size: int, rotary_size: int) -> Resources:
    pointers = {"x_ptr": f"*{dtype}", "positions_ptr": "*i64", "cos_sin_ptr": "*fp32"}
    return compile_kernel(
        rope_kernel,
        pointers | {"token_stride": "i32"},
        {
            "NUM_HEADS": 32,
            "GROUP": Q_GROUP,
            "HEAD": head_size,
            "ROTARY": rotary_size,
            "INTERLEAVED": rotary_size < head_size,
            "PDL": capability >= 90,
        },
        aligned=[*pointers, "token_stride"],
        capability=capability,
        num_warps=NUM_WARPS,
    )


def qk_norm_rope_write(
    capability: int, dtype: str, num_kv_heads: int, head_size: int, *, has_norm: bool
) -> Resources:
    data = ["qkv_ptr", "q_weight_ptr", "k_weight_ptr", "cache_ptr"]
    pointers = dict.fromkeys(data, f"*{dtype}") | {"cos_sin_ptr": "*fp32"}
    pointers |= dict.fromkeys(["positions_ptr", "slots_ptr"], "*i64")
    strides = dict.fromkeys(["qkv_stride", "block_stride", "token_stride"], "i32")
    strides["side_stride"] = "i64"
    return compile_kernel(
        qk_norm_rope_write_kernel,
        pointers | strides | {"eps": "fp32"},
        {
            "NUM_HEADS": 4 * num_kv_heads,
            "NUM_KV_HEADS": num_kv_heads,
            "Q_GROUP": min(Q_GROUP, triton.next_power_of_2(4 * num_kv_heads)),
            "KV_GROUP": min(KV_GROUP, triton.next_power_of_2(num_kv_heads)),
            "HEAD": head_size,
            "ROTARY": head_size,
            "INTERLEAVED": False,
            "HAS_NORM": has_norm,
            "BLOCK_SIZE": 16,
            "PDL": capability >= 90,
        },
        aligned=[*pointers, *strides],
        capability=capability,
        num_warps=NUM_WARPS,
    )


def embed_tokens(capability: int, dtype: str, size: int) -> Resources:
    pointers = dict.fromkeys(["table_ptr", "out_ptr"], f"*{dtype}")
    pointers |= dict.fromkeys(["token_ids_ptr", "positions_ptr"], "*i64")
    pointers |= dict.fromkeys(["token_table_ptr", "token_rows_ptr"], "*i32")
    strides = dict.fromkeys(["table_stride", "token_table_stride"], "i32")
    return compile_kernel(
        embed_tokens_kernel,
        pointers | strides | {"vocab_size": "i32"},
        {"SIZE": size, "HAS_TOKEN_TABLE": True, "TILE": EMBEDDING_TILE, "PDL": capability >= 90},
        aligned=[*pointers, *strides],
        capability=capability,
    )


def variants(capability: int) -> dict[str, tuple[Resources, bool]]:
    made = {}
    for dtype, size in (("bf16", 1024), ("bf16", 4096), ("fp32", 4096), ("fp16", 576)):
        made[f"rms_norm {dtype} {size}"] = rms_norm(capability, dtype, size, add=False)
        made[f"add_rms_norm {dtype} {size}"] = rms_norm(capability, dtype, size, add=True)
        made[f"layer_norm {dtype} {size}"] = layer_norm(capability, dtype, size)
    for activation in ("silu", "gelu", "gelu_tanh"):
        made[activation] = act_and_mul(capability, "bf16", activation)
    for dtype, head_size, rotary_size in (("bf16", 128, 128), ("fp32", 128, 64)):
        made[f"rope {dtype} {rotary_size}"] = rope(capability, dtype, head_size, rotary_size)
    for dtype, num_kv_heads, head_size in (("bf16", 8, 128), ("bf16", 3, 64), ("fp32", 8, 256)):
        for has_norm in (False, True):
            name = f"qk_norm_rope_write {dtype} {num_kv_heads} {head_size} {has_norm}"
            shape = num_kv_heads, head_size
            made[name] = qk_norm_rope_write(capability, dtype, *shape, has_norm=has_norm)
    made["embed_tokens"] = embed_tokens(capability, "bf16", 4096)
    return {name: (resources, False) for name, resources in made.items()}
