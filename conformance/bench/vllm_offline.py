"""Times vLLM on the fixed workloads, as `pagetwin bench offline` times the engine here.

Run it in vLLM's own environment, with these sources on the path; `pagetwin bench peers` keeps what
it writes:

    PYTHONPATH=src python -m pagetwin.conformance.bench.vllm_offline MODEL OUT.json [WORKLOAD ...]

vLLM is as it comes: CUDA graphs, scheduling, chunked prefill and prefix caching are its own
defaults. What is asked for is the work: random weights in bfloat16, greedy, outputs of given
lengths, no text. The prefix cache is emptied before each pass, and the last output ends the clock.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pagetwin.conformance.bench.offline import MAX_MODEL_LEN
from pagetwin.conformance.bench.workloads import VOCABULARY, WORKLOADS, Workload, single

PASSES = 2
MEMORY = 0.85
"""Share of the GPU's memory, as the committed measurements had it."""


def measure(model: str, names: Sequence[str]) -> dict[str, Any]:
    """A pass per workload and repeat, after a short warm-up; the form that peer_files reads."""
    from vllm import LLM

    started = time.perf_counter()
    llm = LLM(
        model=model,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=MAX_MODEL_LEN,
        gpu_memory_utilization=MEMORY,
        seed=0,
        disable_log_stats=True,
    )
    load_s = time.perf_counter() - started
    run_pass(llm, single(num_prompt_tokens=32, num_output_tokens=8))
    runs = {}
    for name in names:
        workload = WORKLOADS[name](VOCABULARY)
        runs[name] = {
            "seconds": [run_pass(llm, workload) for _ in range(PASSES)],
            "prompt_tokens": sum(len(request.prompt_token_ids) for request in workload),
            "output_tokens": sum(request.num_output_tokens for request in workload),
            "n": len(workload),
        }
        print(name, runs[name]["seconds"], flush=True)
    return {"model": model, "load_s": load_s, "extra": {}, "runs": runs}


def run_pass(llm: Any, workload: Workload) -> float:
    """Seconds of one pass. Raises RuntimeError if an output has not the length asked for."""
    from vllm import SamplingParams

    llm.reset_prefix_cache()
    params = [
        SamplingParams(
            temperature=0.0,
            ignore_eos=True,
            max_tokens=request.num_output_tokens,
            detokenize=False,
        )
        for request in workload
    ]
    prompts = [{"prompt_token_ids": request.prompt_token_ids} for request in workload]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    if lengths != [request.num_output_tokens for request in workload]:
        raise RuntimeError(f"vLLM made outputs of {lengths} tokens, other than was asked for")
    return seconds


def main() -> None:
    if len(sys.argv) < 3 or set(sys.argv[3:]) - set(WORKLOADS):
        sys.exit(f"usage: vllm_offline MODEL OUT.json [{' | '.join(WORKLOADS)} ...]")
    model, out, *names = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(model, names or list(WORKLOADS)), indent=1) + "\n")


if __name__ == "__main__":
    main()
