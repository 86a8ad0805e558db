"""How much of a GPU's memory is left for KV blocks: measured, by running the largest step."""

import torch

from pagetwin.engine.config import EngineConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.gpu_runner import GpuRunner

RESERVE_BYTES = 2**29
"""For what the measured step does not show: CUDA graphs, cuBLAS workspaces, fragments."""


def kv_cache_bytes(runner: GpuRunner, config: EngineConfig, utilization: float) -> int:
    """Bytes for KV blocks, if all of the engine is to use that share of the GPU's memory.

    `runner` has the configuration's model and sizes but a pool of a few blocks; its largest step
    is run. Memory that other processes hold counts as used. Raises ConfigError if nothing is left.
    """
    device = runner.kv_cache.device_pool.device
    runner.compile()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    num_tokens = config.scheduler.max_num_batched_tokens
    runner.rehearse_prefill(num_tokens)
    step = torch.cuda.max_memory_allocated(device) - held
    left = int(free - (1 - utilization) * total) - step - RESERVE_BYTES
    if left <= 0:
        gib = 2.0**30
        raise ConfigError(
            f"no GPU memory is left for the KV cache: of {total / gib:.1f} GiB, "
            f"{(total - free) / gib:.1f} are in use (weights included), a step of {num_tokens} "
            f"tokens needs {step / gib:.1f}, and gpu_memory_utilization={utilization} allows "
            f"{utilization * total / gib:.1f} in all; raise it, lower max_num_batched_tokens or "
            "max_num_seqs, or free memory"
        )
    return left
