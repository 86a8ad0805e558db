"""How many KV blocks a GPU's memory leaves, and what a start-up record says there were."""

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.trace import HeaderRecord
from pagetwin.simulator.costs.datasheets import GPU
from pagetwin.simulator.costs.model_shape import ModelShape, dtype_bytes

ACTIVATION_BYTES = 2 * 2**30
"""Assumed for activations, graphs and workspaces; an engine measures it."""


def num_blocks_in(
    gpu: GPU,
    shape: ModelShape,
    *,
    dtype: str = "bfloat16",
    kv_dtype: str | None = None,
    block_size: int = 16,
    gpu_memory_utilization: float = 0.9,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
) -> int:
    """Blocks that fit beside the weights, the null block included; on the fullest GPU.

    An estimate: where a history of the engine is at hand, `recorded_num_blocks` knows. Raises
    ConfigError, with the sums, if nothing is left.
    """
    if not 0 < gpu_memory_utilization <= 1:
        raise ConfigError(
            f"gpu_memory_utilization={gpu_memory_utilization} is outside 0..1; it is a share"
        )
    gpus = tensor_parallel * pipeline_parallel
    weights = shape.num_parameters * dtype_bytes(dtype) // gpus
    allowed = int(gpu.memory_bytes * gpu_memory_utilization)
    left = allowed - weights - ACTIVATION_BYTES
    per_token = shape.kv_bytes_per_token(kv_dtype or dtype, tensor_parallel)
    block_bytes = block_size * -(-per_token // pipeline_parallel)
    if left < 2 * block_bytes:
        gb = 1e9
        raise ConfigError(
            f"no memory is left for KV blocks on {gpus} x {gpu.name}: "
            f"gpu_memory_utilization={gpu_memory_utilization} allows {allowed / gb:.1f} GB each, "
            f"the weights take {weights / gb:.1f} and activations an assumed "
            f"{ACTIVATION_BYTES / gb:.1f}; use more GPUs, a larger one, or a smaller dtype"
        )
    return left // block_bytes


def recorded_num_blocks(header: HeaderRecord) -> int:
    """The blocks of an engine that ran, from the first line of its history."""
    return header.cache.num_blocks
