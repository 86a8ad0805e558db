"""A model that both the engine and the oracle can run: a tiny checkpoint, made for the occasion.

Torch and transformers are imported when a checkpoint is made: a suite that judges an engine without
a model starts without them.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pagetwin.conformance.adapters.protocol import Adapter, Session
from pagetwin.conformance.experiments.asking import opened, session_config, setting_for
from pagetwin.conformance.experiments.courses import Knobs, Setting
from pagetwin.conformance.numerics.three_way import ENGINE_TO_ORACLE

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
DType = Literal["float32", "bfloat16"]

ROUNDOFFS: dict[DType, float] = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
VOCAB_SIZE = 512
MAX_MODEL_LEN = 512
HIDDEN_SIZE = 128
"""In four heads: 32 is the smallest head size that every adapter's attention takes."""

_PROBED = 64
"""Tokens over which the oracle's own error is measured."""


class Reference:
    """The checkpoint's folder, and what transformers makes of it in float64 on the CPU."""

    def __init__(self, folder: Path, dtype: DType) -> None:
        from pagetwin.conformance.oracles.hf import HuggingFaceOracle

        self.folder = folder
        self.dtype = dtype
        self.vocab_size = VOCAB_SIZE
        self._oracle = HuggingFaceOracle(folder, _torch_dtype(dtype))
        tokens = np.random.default_rng(0).integers(VOCAB_SIZE, size=_PROBED).tolist()
        naive = self.naive_logits(tokens[:1], tokens[1:])
        difference = naive - self.logits(tokens[:1], tokens[1:])
        difference -= difference.mean(axis=-1, keepdims=True)
        self.error = float(np.abs(difference).max())
        """Largest error of a logit that transformers makes in the checkpoint's own dtype."""
        self.error_deviation = float(difference.std())

    @property
    def epsilon(self) -> float:
        """By how much an engine's logits may be off: the three-way rule's share of the oracle's."""
        return ENGINE_TO_ORACLE * self.error

    def logits(self, prompt: Sequence[int], output: Sequence[int]) -> Floats:
        """Exact logits [len(output) + 1, vocab], row i after i output tokens."""
        return _array(self._oracle.exact_scores(prompt, output))

    def naive_logits(self, prompt: Sequence[int], output: Sequence[int]) -> Floats:
        """The same from transformers in the checkpoint's own dtype."""
        return _array(self._oracle.scores(prompt, output))


@contextmanager
def reference_model(*, seed: int = 0, dtype: DType = "float32") -> Iterator[Reference]:
    """A tiny random Llama in a folder that lives as long as the block."""
    from pagetwin.conformance.adapters.random_checkpoint import (
        RandomModel,
        write_random_checkpoint,
    )

    model = RandomModel(
        seed=seed,
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        max_model_len=MAX_MODEL_LEN,
        dtype=dtype,
    )
    with tempfile.TemporaryDirectory(prefix="pagetwin-") as name, _one_thread():
        folder = Path(name)
        write_random_checkpoint(model, folder)
        yield Reference(folder, dtype)


def reference_setting(adapter: Adapter) -> Setting:
    """The shape of sessions over the tiny checkpoint, in the engine's own blocks."""
    setting = setting_for(adapter)
    return Setting(
        vocab_size=VOCAB_SIZE,
        block_size=setting.block_size,
        max_model_len=MAX_MODEL_LEN,
        num_logprobs=setting.num_logprobs,
    )


@contextmanager
def reference_session(
    adapter: Adapter, reference: Reference, knobs: Knobs, *, seed: int = 0
) -> Iterator[Session]:
    """A session of the engine on the reference's checkpoint."""
    setting = reference_setting(adapter)
    roomy: dict[str, Any] = {
        "num_blocks": 1 + 256 * (-(-192 // setting.block_size)),
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
    }
    config = session_config(setting, roomy | dict(knobs), seed=seed)
    config = msgspec.structs.replace(config, model=str(reference.folder))
    with opened(adapter, config, as_it_is=True) as session:
        yield session


def log_softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads, and wait for each other where cores are busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _torch_dtype(name: DType) -> Any:
    import torch

    return getattr(torch, name)


def _array(logits: "Tensor") -> Floats:
    return np.asarray(logits.double().numpy())
