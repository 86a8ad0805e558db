"""How the small kernels of a model's layers are launched, for test_compiles.py."""

from pagetwin.kernels.activation import TILE, act_and_mul_kernel
from pagetwin.kernels.compiled import Resources, compile_kernel
from pagetwin.kernels.norm import layer_norm_kernel, num_warps, rms_norm_kernel


def rms_norm(capability: int, dtype: str, size: int, *, add: bool) -> Resources:
    pointers = dict.fromkeys(["x_ptr", "residual_ptr", "weight_ptr", "out_ptr"], f"*{dtype}")
    strides = dict.fromkeys(["x_stride", "residual_stride", "out_stride"], "i32")
    return compile_kernel(
        rms_norm_kernel,
        pointers | strides | {"eps": "fp32"},
        {"SIZE": size, "ADD": add},
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
        {"SIZE": size},
        aligned=[*pointers, *strides],
        capability=capability,
        num_warps=num_warps(size),
    )


def act_and_mul(capability: int, dtype: str, activation: str) -> Resources:
    pointers = dict.fromkeys(["gate_up_ptr", "out_ptr"], f"*{dtype}")
    return compile_kernel(
        act_and_mul_kernel,
        pointers | {"row_stride": "i32"},
        {"SIZE": 3072, "ACTIVATION": activation, "TILE": TILE},
        aligned=[*pointers, "row_stride"],
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
    return {name: (resources, False) for name, resources in made.items()}
