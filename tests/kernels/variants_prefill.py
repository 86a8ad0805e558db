"""How the paged prefill kernels are launched, for test_compiles.py."""

import torch
import triton

from pagetwin.kernels.attention_tiles import SPLIT, tile_size
from pagetwin.kernels.compiled import Resources, compile_kernel
from pagetwin.kernels.paged_prefill import BLOCK_M, launch_shape
from pagetwin.kernels.paged_prefill_kernel import paged_prefill_kernel

TRITON_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def paged_prefill(
    capability: int,
    head_size: int,
    dtype: torch.dtype,
    *,
    is_whole: bool,
    all_features: bool,
    block_size: int = 16,
) -> Resources:
    data = dict.fromkeys(["q_ptr", "cache_ptr", "out_ptr"], f"*{TRITON_TYPES[dtype]}")
    floats = dict.fromkeys(["folded_ptr", "slopes_ptr", "sinks_ptr"], "*fp32")
    tables = dict.fromkeys(["block_tables_ptr", "tiles_ptr"], "*i32")
    names = ["q_stride", "out_stride", "table_stride"]
    names += [f"cache_stride_{name}" for name in ("side", "block", "token", "head")]
    strides = dict.fromkeys(names, "i32")
    scalars = {"num_items": "i32", "scale": "fp32", "soft_cap": "fp32", "sliding_window": "i32"}
    plain = not all_features and head_size == triton.next_power_of_2(head_size)
    m, num_warps, num_stages = launch_shape(capability, head_size, dtype.itemsize, plain=plain)
    constants = {
        "NUM_HEADS": 32,
        "GROUP": 4,
        "HEAD": head_size,
        "HEAD_PADDED": triton.next_power_of_2(head_size),
        "BLOCK_SIZE": block_size,
        "ROWS": BLOCK_M,
        "M": m,
        "TILE": tile_size(head_size, dtype.itemsize),
        "SPLIT": SPLIT,
        "HAS_SOFT_CAP": all_features,
        "HAS_SLOPES": all_features,
        "HAS_SINKS": all_features,
        "HAS_WINDOW": all_features,
        "IS_WHOLE": is_whole,
    }
    return compile_kernel(
        paged_prefill_kernel,
        data | floats | tables | strides | scalars,
        constants,
        aligned=[*data, *floats, *tables, *strides],
        capability=capability,
        num_warps=num_warps,
        num_stages=num_stages,
    )


def paged_prefill_hopper(
    head_size: int, dtype: torch.dtype, block_size: int, *, has_window: bool, has_sinks: bool
) -> Resources:
    from pagetwin.kernels.paged_prefill_hopper import paged_prefill_hopper_kernel
    from pagetwin.kernels.pages_hopper import SIDE

    kind = TRITON_TYPES[dtype]
    box = min(block_size, 128)
    descriptors = {
        "q_desc": f"tensordesc<{kind}[64, {head_size}],{SIDE!r}>",
        "cache_desc": f"tensordesc<{kind}[{box}, 64],{SIDE!r}>",
    }
    pointers = {"out_ptr": f"*{kind}", "sinks_ptr": "*fp32"}
    pointers |= dict.fromkeys(["block_tables_ptr", "tiles_ptr"], "*i32")
    strides = dict.fromkeys(["out_stride", "table_stride", "first_value_row", "no_row"], "i32")
    scalars = {"num_items": "i32", "scale": "fp32", "sliding_window": "i32"}
    constants = {
        "NUM_HEADS": 32,
        "GROUP": 4,
        "HEAD": head_size,
        "BLOCK_SIZE": block_size,
        "BOX": box,
        "SPLIT": SPLIT,
        "STAGES": 2,
        "HAS_WINDOW": has_window,
        "HAS_SINKS": has_sinks,
    }
    return compile_kernel(
        paged_prefill_hopper_kernel,
        descriptors | pointers | strides | scalars,
        constants,
        aligned=[*pointers, *strides],
        capability=90,
    )


def variants(capability: int) -> dict[str, tuple[Resources, bool]]:
    made = {}
    for head_size, dtype, is_whole, all_features in (
        (64, torch.bfloat16, False, False),
        (64, torch.bfloat16, True, True),
        (80, torch.float16, False, False),
        (80, torch.float16, False, True),
        (128, torch.bfloat16, True, False),
        (128, torch.bfloat16, False, False),
        (128, torch.bfloat16, False, True),
        (256, torch.bfloat16, False, True),
        (128, torch.float32, False, True),
    ):
        resources = paged_prefill(
            capability, head_size, dtype, is_whole=is_whole, all_features=all_features
        )
        name = f"paged_prefill {head_size} {TRITON_TYPES[dtype]} {is_whole} {all_features}"
        made[name] = resources, dtype != torch.float32
    if capability == 90:
        for head_size, dtype, block_size, has_window, has_sinks in (
            (128, torch.bfloat16, 16, False, False),
            (128, torch.bfloat16, 16, False, True),
            (128, torch.bfloat16, 128, False, False),
            (128, torch.bfloat16, 16, True, False),
            (64, torch.float16, 32, True, True),
        ):
            resources = paged_prefill_hopper(
                head_size, dtype, block_size, has_window=has_window, has_sinks=has_sinks
            )
            name = f"paged_prefill_hopper {head_size} {block_size} {has_window} {has_sinks}"
            made[name] = resources, True
    return made
