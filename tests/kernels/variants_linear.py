"""How the products of few rows are launched, for test_compiles.py."""

from typing import Any

from pagetwin.kernels.compiled import Resources, compile_kernel
from pagetwin.kernels.linear_tiles import choose_tiles, linear_kernel

ITEMSIZES = {"bf16": 2, "fp16": 2, "fp32": 4}


def product(
    capability: int,
    dtype: str,
    rows: int,
    n: int,
    k: int,
    *,
    gated: bool = False,
    bias: bool = False,
    residual: bool = False,
    out: str | None = None,
) -> Resources:
    pointers = {"x_ptr": dtype, "weight_ptr": dtype, "out_ptr": out or dtype}
    pointers |= {"bias_ptr": dtype} if bias else {}
    pointers |= {"residual_ptr": dtype} if residual else {}
    tiles = choose_tiles(rows, n, ITEMSIZES[dtype], gated=gated)
    constants: dict[str, Any] = dict.fromkeys({"bias_ptr", "residual_ptr"} - set(pointers))
    constants |= {"N": n, "K": k, "GATED": gated, "PDL": capability >= 90}
    names = ["BLOCK_M", "BLOCK_N", "BLOCK_K", "STAGES", "W_FIRST"]
    return compile_kernel(
        linear_kernel,
        {name: f"*{kind}" for name, kind in pointers.items()}
        | {"num_rows": "i32", "x_stride": "i32"},
        constants | dict(zip(names, tiles, strict=False)),
        aligned=[*pointers, "x_stride"],
        capability=capability,
        num_warps=tiles.num_warps,
    )


def product_on_hopper(
    dtype: str,
    rows: int,
    n: int,
    k: int,
    *,
    normalised: bool = False,
    gated: bool = False,
    residual: bool = False,
    out: str | None = None,
) -> Resources:
    from pagetwin.kernels.linear_hopper import choose_cut, linear_hopper_kernel

    cut = choose_cut(rows, n, k, gated=gated)
    assert cut is not None
    pointers = {"x_ptr": dtype, "weight_ptr": dtype, "out_ptr": out or dtype}
    pointers |= {"norm_weight_ptr": dtype} if normalised else {}
    pointers |= {"residual_ptr": dtype} if residual else {}
    optional = {"norm_weight_ptr", "bias_ptr", "residual_ptr"}
    constants: dict[str, Any] = dict.fromkeys(optional - set(pointers))
    constants |= {"N": n, "K": k, "GATED": gated, "ROWS": cut.rows, "SLOTS": cut.slots}
    return compile_kernel(
        linear_hopper_kernel,
        {name: f"*{kind}" for name, kind in pointers.items()}
        | {"num_rows": "i32", "x_stride": "i32", "eps": "fp32"},
        constants | {"PDL": True},
        aligned=[*pointers, "x_stride"],
        capability=90,
        num_warps=cut.num_warps,
    )


def gates_on_hopper(dtype: str, rows: int, n: int, k: int) -> Resources:
    from pagetwin.kernels.gated_hopper import choose_tile, gated_hopper_kernel, side

    tile = choose_tile(rows, n, k, 132)
    assert tile is not None
    boxes = {"x_desc": (64, 64), "weight_desc": (tile.columns, 64), "out_desc": (64, tile.columns)}
    descriptors = {
        name: f"tensordesc<{dtype}[{height}, {width}],{side(width)!r}>"
        for name, (height, width) in boxes.items()
    }
    constants = {"N": n, "K": k, "GROUPS": tile.groups, "COLUMNS": tile.columns}
    return compile_kernel(
        gated_hopper_kernel,
        descriptors | {"num_rows": "i32"},
        constants | {"SLOTS": tile.num_slots(k), "PDL": True},
        aligned=[],
        capability=90,
    )


def variants(capability: int) -> dict[str, tuple[Resources, bool]]:
    made = {}
    for rows in (1, 16, 32, 64):
        made[f"qkv {rows}"] = product(capability, "bf16", rows, 4096, 1024, bias=rows == 16), True
        made[f"o {rows}"] = product(capability, "bf16", rows, 1024, 2048, residual=True), True
        made[f"gate_up {rows}"] = product(capability, "bf16", rows, 3072, 1024, gated=True), True
        made[f"down {rows}"] = product(capability, "bf16", rows, 4096, 14336, residual=True), True
        made[f"logits {rows}"] = product(capability, "bf16", rows, 151936, 1024, out="fp32"), True
    everything: dict[str, Any] = {"gated": True, "bias": True, "residual": True}
    made["fp16, odd sizes"] = product(capability, "fp16", 5, 600, 570, **everything), True
    made["fp32"] = product(capability, "fp32", 5, 1536, 576, **everything), False
    made["fp32, many rows"] = product(capability, "fp32", 500, 1536, 576, residual=True), False
    if capability == 90:
        made |= {f"{name} on hopper": (made_of, True) for name, made_of in on_hopper().items()}
    return made


def on_hopper() -> dict[str, Resources]:
    made = {}
    for rows in (1, 16):
        made[f"qkv {rows}"] = product_on_hopper("bf16", rows, 4096, 1024, normalised=True)
        made[f"o {rows}"] = product_on_hopper("bf16", rows, 1024, 2048, residual=True)
        made[f"gate_up {rows}"] = product_on_hopper(
            "bf16", rows, 3072, 1024, normalised=True, gated=True
        )
        made[f"logits {rows}"] = product_on_hopper("fp16", rows, 151936, 1024, out="fp32")
        made[f"large o {rows}"] = product_on_hopper("bf16", rows, 4096, 4096, residual=True)
    for rows in (1, 4):
        made[f"large down {rows}"] = product_on_hopper("bf16", rows, 4096, 14336, residual=True)
    for rows in (64, 128, 8192):
        made[f"large gates {rows}"] = gates_on_hopper("bf16", rows, 14336, 4096)
    for rows in (64, 128, 256):
        made[f"gates {rows}"] = gates_on_hopper("bf16", rows, 3072, 1024)
    made["gates, odd sizes"] = gates_on_hopper("fp16", 200, 1544, 1080)
    return made
