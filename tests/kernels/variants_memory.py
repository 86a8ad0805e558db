"""How the kernels that move KV memory are launched, for test_compiles.py."""

from pagetwin.kernels.block_copy import TILE, move_blocks_kernel
from pagetwin.kernels.compiled import Resources, compile_kernel
from pagetwin.kernels.kv_write import write_kv_kernel


def write_kv(capability: int) -> Resources:
    pointers = dict.fromkeys(["k_ptr", "v_ptr", "cache_ptr"], "*bf16") | {"slots_ptr": "*i64"}
    names = ["k_stride", "v_stride", "side_stride", "block_stride", "token_stride"]
    strides = dict.fromkeys(names, "i32")
    return compile_kernel(
        write_kv_kernel,
        pointers | strides,
        {"BLOCK_SIZE": 16, "ROW": 1024, "ROW_PADDED": 1024},
        aligned=[*pointers, *strides],
        capability=capability,
    )


def move_blocks(capability: int) -> Resources:
    pointers = dict.fromkeys(["source_ptr", "target_ptr"], "*bf16")
    pointers |= dict.fromkeys(["sources_ptr", "destinations_ptr"], "*i64")
    strides = {
        "source_plane_stride": "i64",
        "source_block_stride": "i32",
        "target_plane_stride": "i32",
        "target_block_stride": "i32",
    }
    return compile_kernel(
        move_blocks_kernel,
        pointers | strides,
        {"BLOCK_ELEMENTS": 16 * 1024, "TILE": TILE},
        aligned=[*pointers, *strides],
        capability=capability,
    )


def variants(capability: int) -> dict[str, tuple[Resources, bool]]:
    return {
        "write_kv": (write_kv(capability), False),
        "move_blocks": (move_blocks(capability), False),
    }
