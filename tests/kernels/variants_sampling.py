"""How the sampling kernels are launched, for test_compiles.py."""

from typing import Any

from pagetwin.kernels.compiled import Resources, compile_kernel
from pagetwin.kernels.sampling import CHOOSE_WARPS, GREEDY_WARPS, SUMMARISE_WARPS
from pagetwin.kernels.sampling_greedy import greedy_kernel
from pagetwin.kernels.sampling_penalties import PENALISE_WARPS, penalise_kernel
from pagetwin.kernels.sampling_random import choose_kernel, summarise_kernel

VOCAB = 151_936
POINTERS = {
    "logits_ptr": "*fp32",
    "peaks_ptr": "*fp32",
    "tops_ptr": "*fp32",
    "masses_ptr": "*fp32",
}
INTEGERS = ["words_ptr", "table_ptr", "out_ptr", "failed_ptr", "tokens_ptr", "hot_ptr"]
TYPES = (
    POINTERS
    | dict.fromkeys([*INTEGERS, "arrivals_ptr", "counts_ptr"], "*i32")
    | dict.fromkeys(["logits_stride", "words_stride", "table_stride", "table_width"], "i32")
    | {"counts_stride": "i32"}
)


def compiled(kernel: Any, capability: int, num_warps: int, **constants: int) -> Resources:
    types = {name: TYPES[name] for name in kernel.arg_names if name in TYPES}
    # The stride is the number of rows that draw: it is not specialised on.
    aligned = [name for name in types if name != "words_stride"]
    return compile_kernel(
        kernel, types, constants, aligned=aligned, capability=capability, num_warps=num_warps
    )


def variants(capability: int) -> dict[str, tuple[Resources, bool]]:
    chunks = {"CHUNKS": 38, "CHUNKS_PADDED": 64}
    made = {
        "greedy": compiled(greedy_kernel, capability, GREEDY_WARPS, VOCAB=VOCAB, **chunks),
        "penalise": compiled(penalise_kernel, capability, PENALISE_WARPS, TILE=2048),
        "summarise": compiled(summarise_kernel, capability, SUMMARISE_WARPS, VOCAB=VOCAB),
        "choose": compiled(choose_kernel, capability, CHOOSE_WARPS, VOCAB=VOCAB, **chunks),
    }
    return {name: (resources, False) for name, resources in made.items()}
