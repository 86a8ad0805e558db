"""How the paged decode kernels are launched, for test_compiles.py."""

import torch
import triton

from pagetwin.kernels.compiled import Resources, compile_kernel
from pagetwin.kernels.paged_decode import (
    SPLIT_LENGTH,
    merge_splits_kernel,
    paged_decode_kernel,
    tile_size,
)

TRITON_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def paged_decode(
    capability: int, head_size: int, group: int, dtype: torch.dtype, *, all_features: bool
) -> Resources:
    data = dict.fromkeys(["q_ptr", "cache_ptr", "out_ptr"], f"*{TRITON_TYPES[dtype]}")
    tables = dict.fromkeys(["block_tables_ptr", "query_start_ptr", "seq_lens_ptr"], "*i32")
    partial = dict.fromkeys(["partial_ptr", "max_ptr", "sum_ptr"], "*fp32")
    strides = dict.fromkeys(
        [
            "q_stride_row",
            "q_stride_head",
            "cache_stride_side",
            "cache_stride_block",
            "cache_stride_token",
            "cache_stride_head",
        ],
        "i32",
    )
    scalars = {
        "scale": "fp32",
        "soft_cap": "fp32",
        "sliding_window": "i32",
        "table_stride": "i32",
    }
    constants = {
        "NUM_KV_HEADS": 8,
        "GROUP": group,
        "GROUP_PADDED": max(16, triton.next_power_of_2(group)),
        "HEAD": head_size,
        "HEAD_PADDED": triton.next_power_of_2(head_size),
        "BLOCK_SIZE": 16,
        "TILE": tile_size(head_size, dtype.itemsize),
        "SPLIT": SPLIT_LENGTH,
        "HAS_SOFT_CAP": all_features,
        "HAS_WINDOW": all_features,
        "IS_WHOLE": False,
    }
    return compile_kernel(
        paged_decode_kernel,
        data | tables | partial | strides | scalars,
        constants,
        aligned=[*data, *tables, *partial, *strides],
        capability=capability,
    )


def merge_splits(capability: int) -> Resources:
    pointers = dict.fromkeys(["partial_ptr", "max_ptr", "sum_ptr"], "*fp32")
    pointers |= {"query_start_ptr": "*i32", "out_ptr": "*bf16"}
    return compile_kernel(
        merge_splits_kernel,
        pointers | {"num_splits": "i32"},
        {"NUM_HEADS": 32, "HEAD": 128, "HEAD_PADDED": 128},
        aligned=pointers,
        capability=capability,
        num_warps=1,
    )


def variants(capability: int) -> dict[str, tuple[Resources, bool]]:
    made = {"merge_splits": (merge_splits(capability), False)}
    for head_size, group, dtype, all_features in (
        (64, 3, torch.bfloat16, False),
        (80, 1, torch.float16, False),
        (128, 4, torch.bfloat16, False),
        (128, 16, torch.bfloat16, True),
        (256, 8, torch.bfloat16, True),
        (128, 4, torch.float32, True),
    ):
        name = f"paged_decode {head_size} {group} {TRITON_TYPES[dtype]} {all_features}"
        resources = paged_decode(capability, head_size, group, dtype, all_features=all_features)
        made[name] = resources, dtype != torch.float32
    return made
