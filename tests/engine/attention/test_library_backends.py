"""What flash-attn and flashinfer are asked for, by stand-ins that do what their manuals say.

The libraries need a GPU; here it is shown that their arguments describe the step.
"""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.attention.registry import resolve_backend
from pagetwin.engine.errors import ConfigError
from pagetwin.kernels.reference import dense_attention
from pagetwin.kernels.trial import Span, exact_attention, make_batch, make_sequence

HEADS: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_size": 64}
SPANS = [(0, 7), (20, 21), (250, 300), (511, 512)]
MODULES = {
    "flash_attn": "pagetwin.engine.attention.flash_attn_backend",
    "flashinfer": "pagetwin.engine.attention.flashinfer_backend",
}


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, left: int, soft_cap: float) -> Tensor:
    """Causal attention of the last rows; `left` = positions before a row that it sees, -1 = all."""
    result = dense_attention(q, k, v, scale=scale, sliding_window=left + 1, soft_cap=soft_cap)
    return result.out.to(q.dtype)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    block_table: Tensor,
) -> Tensor:
    """k, v [num_blocks, block_size, num_kv_heads, head_size]; everything else as in flash-attn."""
    assert causal
    assert window_size[1] in (-1, 0)
    assert q.is_contiguous()
    outs = []
    for i, table in enumerate(block_table):
        rows = q[cu_seqlens_q[i] : cu_seqlens_q[i + 1]]
        length = int(cu_seqlens_k[i + 1] - cu_seqlens_k[i])
        assert len(rows) <= max_seqlen_q
        assert length <= max_seqlen_k
        keys, values = (side[table.long()].flatten(0, 1)[:length] for side in (k, v))
        outs.append(attend(rows, keys, values, softmax_scale, window_size[0], softcap))
    return torch.cat(outs)


class BatchPrefillWithPagedKVCacheWrapper:
    """As flashinfer's, for the layout NHD."""

    def __init__(self, workspace: Tensor, layout: str) -> None:
        assert (workspace.dtype, layout) == (torch.uint8, "NHD")

    def plan(self, *args: Any, **options: Any) -> None:
        self.args, self.options = args, options

    def run(self, q: Tensor, cache: tuple[Tensor, Tensor]) -> Tensor:
        row_starts, block_starts, blocks, last_lengths, *sizes = self.args
        options = self.options
        assert options["causal"]
        assert sizes == [*HEADS.values(), cache[0].shape[1]]
        outs = []
        for i in range(len(last_lengths)):
            ids = blocks[block_starts[i] : block_starts[i + 1]].long()
            length = (len(ids) - 1) * sizes[-1] + int(last_lengths[i])
            keys, values = (side[ids].flatten(0, 1)[:length] for side in cache)
            rows = q[row_starts[i] : row_starts[i + 1]]
            cap, left = options["logits_soft_cap"] or 0.0, options["window_left"]
            outs.append(attend(rows, keys, values, options["sm_scale"], left, cap))
        return torch.cat(outs)


@pytest.fixture(params=list(MODULES))
def backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[AttentionBackend]]:
    """The backend's class, over the stand-in of its library."""
    for name, value in (
        ("flash_attn", flash_attn_varlen_func),
        ("flashinfer", BatchPrefillWithPagedKVCacheWrapper),
    ):
        library = ModuleType(name)
        setattr(library, value.__name__, value)
        monkeypatch.setitem(sys.modules, name, library)
    module = import_module(MODULES[request.param])
    yield next(
        v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__
    )
    del sys.modules[MODULES[request.param]]


def spec(**changes: Any) -> AttentionSpec:
    return AttentionSpec(**{**HEADS, "dtype": torch.float32, "block_size": 256, **changes})


@pytest.mark.parametrize(("window", "soft_cap"), [(0, 0.0), (30, 0.0), (0, 5.0), (1, 0.0)])
def test_a_mixed_step_is_described_as_it_is(
    backend: type[AttentionBackend],
    forward: Callable[..., Tensor],
    window: int,
    soft_cap: float,
) -> None:
    spans = [Span(make_sequence(512, seed=i, **HEADS), *span) for i, span in enumerate(SPANS)]
    batch = make_batch(spans, block_size=256, sliding_window=window, poison=0.0)
    out = forward(backend(spec(soft_cap=soft_cap)), batch, scale=0.1, sliding_window=window)
    exact = exact_attention(spans, scale=0.1, sliding_window=window, soft_cap=soft_cap)
    torch.testing.assert_close(out.double(), exact.out, rtol=0, atol=1e-5)


def test_what_the_library_cannot_do_is_refused(backend: type[AttentionBackend]) -> None:
    good = {"device_type": "cuda", "dtype": torch.bfloat16}
    assert backend.rejection(spec(**good)) is None
    for change, word in (
        ({"device_type": "cpu"}, "CUDA"),
        ({"dtype": torch.float32}, "float16 and bfloat16"),
        ({"head_size": 100}, "head sizes"),
        ({"needs_sinks": True}, "sinks"),
    ):
        reason = backend.rejection(spec(**{**good, **change}))
        assert reason is not None
        assert word in reason


@pytest.mark.parametrize("name", MODULES)
def test_a_library_that_is_not_installed_is_named(name: str) -> None:
    try:
        import_module(name)
    except ImportError:
        with pytest.raises(ConfigError, match=f"cannot be imported .*{name}"):
            resolve_backend(name, spec(device_type="cuda"))
    else:
        pytest.skip(f"{name} is installed")
