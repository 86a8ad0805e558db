"""The tiny checkpoint that values are judged on: one that every adapter's engine can load."""

import json

from pagetwin.conformance.adapters.vllm import HEAD_SIZE_STEP
from pagetwin.conformance.experiments.reference import reference_model


def test_its_heads_fit_the_pickiest_attention_and_share_keys() -> None:
    with reference_model() as reference:
        config = json.loads((reference.folder / "config.json").read_text())
        heads = config["num_attention_heads"]
        assert config["hidden_size"] // heads % HEAD_SIZE_STEP == 0
        assert 1 < config["num_key_value_heads"] < heads
        assert 0 < reference.error < 1e-4
