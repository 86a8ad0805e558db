"""How the paged decode kernel is launched, for test_compiles.py."""

import math
from typing import Any

import torch
import triton

from pagetwin.kernels.attention_tiles import SPLIT, tile_size
from pagetwin.kernels.compiled import Resources, compile_kernel
from pagetwin.kernels.paged_decode import launch_shape, rows_per_item
from pagetwin.kernels.paged_decode_kernel import paged_decode_kernel

TRITON_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
NUM_KV_HEADS = 8
INDEX_POINTERS = ["tables_ptr", "items_ptr", "members_ptr", "num_items_ptr", "arrivals_ptr"]


def paged_decode(
    capability: int,
    head_size: int,
    group: int,
    dtype: torch.dtype,
    *,
    all_features: bool = False,
    block_size: int = 16,
    few: bool = False,
) -> Resources:
    pointers = dict.fromkeys(["q_ptr", "cache_ptr", "out_ptr"], f"*{TRITON_TYPES[dtype]}")
    pointers |= dict.fromkeys(INDEX_POINTERS, "*i32")
    pointers |= dict.fromkeys(["weighted_ptr", "stats_ptr"], "*fp32")
    absent: dict[str, Any] = {}
    if all_features:
        pointers |= dict.fromkeys(["slopes_ptr", "sinks_ptr"], "*fp32")
    else:
        absent = dict.fromkeys(["slopes_ptr", "sinks_ptr"])
    strides = dict.fromkeys(
        ["q_stride_row", "q_stride_head", "cache_stride_side", "cache_stride_block"], "i32"
    )
    strides["cache_stride_side"] = "i64"
    scalars = {
        "scale": "fp32",
        "soft_cap": "fp32",
        "sliding_window": "i32",
        "table_stride": "i32",
    }
    tile = tile_size(head_size, dtype.itemsize)
    shape = launch_shape(capability, group, head_size, dtype.itemsize, few=few)
    constants = {
        "CACHE_STRIDE_TOKEN": NUM_KV_HEADS * head_size,
        "CACHE_STRIDE_HEAD": head_size,
        "CACHE_ALIGNMENT": 16,
        "TABLE_IS_ALIGNED": True,
        "NUM_KV_HEADS": NUM_KV_HEADS,
        "GROUP": group,
        "M": rows_per_item(group),
        "HEAD": head_size,
        "HEAD_PADDED": triton.next_power_of_2(head_size),
        "BLOCK_SIZE": block_size,
        "CHUNK": math.gcd(block_size, tile),
        "TILE": tile,
        "SPLIT": SPLIT,
        "HAS_SOFT_CAP": all_features,
        "HAS_WINDOW": all_features,
        "NUM_STAGES": shape.num_stages,
        "PDL": capability >= 90,
    }
    return compile_kernel(
        paged_decode_kernel,
        pointers | strides | scalars,
        constants | absent,
        aligned=[*pointers, *strides, "table_stride"],
        capability=capability,
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
    )


def paged_decode_hopper(
    head_size: int, group: int, dtype: torch.dtype, block_size: int
) -> Resources:
    from pagetwin.kernels import paged_decode_hopper as module
    from pagetwin.kernels.pages_hopper import SIDE

    kind = TRITON_TYPES[dtype]
    box = math.gcd(block_size, 128)
    descriptor = {"cache_desc": f"tensordesc<{kind}[{box}, 64],{SIDE!r}>"}
    pointers = dict.fromkeys(["q_ptr", "out_ptr"], f"*{kind}")
    pointers |= dict.fromkeys(INDEX_POINTERS, "*i32")
    pointers |= dict.fromkeys(["weighted_ptr", "stats_ptr"], "*fp32")
    strides = dict.fromkeys(
        ["q_stride_row", "q_stride_head", "table_stride", "first_value_row", "no_row"], "i32"
    )
    constants = {
        "NUM_KV_HEADS": NUM_KV_HEADS,
        "GROUP": group,
        "HEAD": head_size,
        "BLOCK_SIZE": block_size,
        "BOX": box,
        "SPLIT": SPLIT,
        "STAGES": module.STAGES,
        "ENTRIES": module.ENTRIES,
        "PDL": True,
    }
    return compile_kernel(
        module.paged_decode_hopper_kernel,
        descriptor | pointers | strides | {"scale": "fp32"},
        constants,
        aligned=[*pointers, *strides],
        capability=90,
    )


def variants(capability: int) -> dict[str, tuple[Resources, bool]]:
    made = {}
    for head_size, group, dtype, all_features, block_size in (
        (64, 3, torch.bfloat16, False, 16),
        (80, 1, torch.float16, False, 16),
        (128, 2, torch.bfloat16, False, 16),
        (128, 4, torch.bfloat16, False, 16),
        (128, 4, torch.bfloat16, False, 24),
        (128, 4, torch.bfloat16, False, 256),
        (128, 16, torch.bfloat16, True, 16),
        (128, 32, torch.bfloat16, False, 16),
        (256, 8, torch.bfloat16, True, 16),
        (128, 4, torch.float32, True, 16),
    ):
        features = "all features" if all_features else "plain"
        name = f"paged_decode {head_size} {group} {TRITON_TYPES[dtype]} {block_size} {features}"
        resources = paged_decode(
            capability, head_size, group, dtype, all_features=all_features, block_size=block_size
        )
        made[name] = resources, dtype != torch.float32
    if capability == 90:
        for head_size, group, dtype, block_size in (
            (128, 2, torch.bfloat16, 16),
            (128, 4, torch.bfloat16, 16),
            (128, 7, torch.float16, 48),
            (128, 16, torch.bfloat16, 128),
            (64, 3, torch.bfloat16, 32),
        ):
            name = f"paged_decode_hopper {head_size} {group} {TRITON_TYPES[dtype]} {block_size}"
            made[name] = paged_decode_hopper(head_size, group, dtype, block_size), True
    made["paged_decode few"] = paged_decode(capability, 128, 2, torch.bfloat16, few=True), True
    return made
