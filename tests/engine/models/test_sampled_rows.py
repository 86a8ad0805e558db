"""Where some rows are wanted, the last layer attends for them alone, and they come out the same."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagetwin.engine.attention.backend import AttentionSpec
from pagetwin.engine.attention.metadata import AttentionMetadata, ForwardContext, SampledRows
from pagetwin.engine.attention.torch_backend import TorchBackend
from pagetwin.engine.models.llama import Llama
from pagetwin.engine.step import ScheduledSequence
from pagetwin.engine.step_inputs import StepInputs, build_inputs_from_scratch

BLOCK_SIZE, MAX_LEN = 4, 40
CONFIG: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}

steps = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), min_size=1, max_size=4)
"""Of each sequence, tokens that are computed and tokens that are scheduled."""


class Watched(TorchBackend):
    """Remembers how many queries each layer asked about."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(spec)
        self.asked: list[int] = []

    def forward(self, q: Tensor, *args: Any, **options: Any) -> Tensor:
        self.asked.append(len(q))
        return super().forward(q, *args, **options)


class Trial:
    """Random weights in float64, and a cache of NaN."""

    def __init__(self, **changes: Any) -> None:
        config = {"architectures": ["Qwen3ForCausalLM"], **CONFIG, **changes}
        cpu = torch.device("cpu")
        self.model = Llama.from_hf_config(config, dtype=torch.float64, device=cpu)
        generator = torch.Generator().manual_seed(5)
        for slot in self.model.checkpoint_slots().values():
            slot.normal_(1.0 if slot.ndim == 1 else 0.0, 0.3, generator=generator)
        spec = self.model.spec
        self.backend = Watched(
            AttentionSpec(
                head_size=spec.head_size,
                num_heads=spec.num_attention_heads,
                num_kv_heads=spec.num_kv_heads,
                dtype=spec.dtype,
                block_size=BLOCK_SIZE,
            )
        )
        self.tables = np.random.default_rng(1).permutation(4 * MAX_LEN // BLOCK_SIZE).astype("i4")
        self.tables = self.tables.reshape(4, -1)
        shape = (2, self.tables.size, BLOCK_SIZE, spec.num_kv_heads, spec.head_size)
        self.caches = [torch.full(shape, torch.nan, dtype=spec.dtype) for _ in range(3)]

    def inputs(self, lengths: list[tuple[int, int]]) -> StepInputs:
        """The step of these sequences that have anything to do."""
        names = [str(i) for i in range(len(lengths))]
        tokens = {name: [(7 * i + 13 * int(name)) % 50 for i in range(MAX_LEN)] for name in names}
        tables = {name: self.tables[i].tolist() for i, name in enumerate(names)}
        scheduled = [
            ScheduledSequence(name, done, count, samples=True)
            for name, (done, count) in zip(names, lengths, strict=True)
            if count
        ]
        rows = {name: i for i, name in enumerate(names)}
        return build_inputs_from_scratch(scheduled, rows, tokens, tables, BLOCK_SIZE)

    def metadata(self, inputs: StepInputs) -> AttentionMetadata:
        return AttentionMetadata(
            slot_mapping=torch.from_numpy(inputs.slot_mapping),
            query_start_loc=torch.from_numpy(inputs.query_start_loc),
            seq_lens=torch.from_numpy(inputs.seq_lens),
            block_tables=torch.from_numpy(self.tables),
            table_rows=torch.from_numpy(inputs.rows),
            max_query_len=inputs.max_query_len,
            max_seq_len=inputs.max_seq_len,
        )

    @torch.inference_mode()
    def forward(self, inputs: StepInputs, rows: list[int] | None = None) -> Tensor:
        sampled = None
        if rows is not None:
            index = np.array(rows, np.int64)
            sampled = SampledRows(torch.from_numpy(index), self.metadata(inputs.of_rows(index)))
        context = ForwardContext(self.backend, self.metadata(inputs), self.caches, sampled=sampled)
        ids, positions = map(torch.from_numpy, (inputs.input_ids, inputs.positions))
        return self.model.forward(ids, positions, context)


@pytest.mark.parametrize("window", [{}, WINDOW], ids=["all", "window"])
def test_some_rows_have_the_hidden_states_that_they_have_among_all(window: dict[str, Any]) -> None:
    counts = set()

    @settings(max_examples=40)
    @given(lengths=steps, data=st.data())
    def check(lengths: list[tuple[int, int]], data: st.DataObject) -> None:
        trial = Trial(**window)
        if any(done for done, _ in lengths):
            trial.forward(trial.inputs([(0, done) for done, _ in lengths]))
        inputs = trial.inputs(lengths)
        rows = data.draw(st.lists(st.integers(0, inputs.num_tokens - 1), unique=True))
        before = [cache.clone() for cache in trial.caches]
        expected = trial.forward(inputs)
        caches, trial.caches, trial.backend.asked = trial.caches, before, []
        hidden = trial.forward(inputs, rows)
        torch.testing.assert_close(hidden, expected[rows], rtol=0, atol=1e-10)
        for cache, other in zip(trial.caches, caches, strict=True):
            assert torch.equal(cache.nan_to_num(), other.nan_to_num())
        every = inputs.num_tokens
        assert trial.backend.asked == [every, every] + [len(rows)] * bool(rows)
        counts.add(min(len(rows), 2))

    check()
    assert counts == {0, 1, 2}
