"""Random members of the model families, written as transformers writes them and loaded as a user
would, against transformers' own computation.

A checkpoint says with a few words of config.json what a model does: which rotary angles, which
layers have a window, which matrices a bias. Each example draws such words, random weights (norms
and biases, too) and a few prompts; every log-probability that the engine then reports, of prompt
and output, must be that of transformers in float32.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from pagetwin.conformance.oracles.hf import no_progress_bar
from pagetwin.conformance.properties import Violation, violation
from pagetwin.engine.llm import LLM
from pagetwin.engine.outputs import RequestOutput
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import TokenLogprobs

ID = "num.families"
VOCAB_SIZE = 64
MAX_MODEL_LEN = 512
TOLERANCE = 2e-3
"""Of a log-probability; rounding gives less than 1e-4, and a bug of a configuration more than 1e-2
almost always."""


def judge_families(seed: int, index: int) -> list[Violation]:
    """One model, and a few prompts of lengths from one token to hundreds."""
    random = Random(f"families {seed} {index}")
    reference = random_model(random)
    eos = sorted(random.sample(range(VOCAB_SIZE), random.choice((1, 1, 2))))
    reference.generation_config.eos_token_id = eos
    prompts = [_prompt(random) for _ in range(random.randint(1, 3))]
    with tempfile.TemporaryDirectory() as folder:
        _save(reference, Path(folder), random)
        try:
            llm = _load(Path(folder), max(map(len, prompts)), random)
            outputs = llm.generate(
                prompts,
                SamplingParams(
                    temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=0, prompt_logprobs=0
                ),
            )
        except Exception as error:  # whatever it is: the model is a valid one
            message = f"the engine raised {type(error).__name__}: {error}"
            return [violation("life.no-crash", -1, message, config=_told(reference.config))]
    found = list(_judge(reference, prompts, outputs))
    if list(llm.engine.eos_token_ids) != eos:
        found.append(_wrong(reference, "other tokens end a text", llm.engine.eos_token_ids, eos))
    return found


def random_model(random: Random) -> PreTrainedModel:
    """Any member, in float32."""
    config = _config(random)
    factory: Any = AutoModelForCausalLM
    model: PreTrainedModel = factory.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(random.randrange(2**30))
    with torch.no_grad():
        for parameter in model.parameters():
            deviation = 1.0 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model


def _config(random: Random) -> PreTrainedConfig:
    num_layers = random.choice((1, 2, 3))
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": random.choice((1, 2, 4)),
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": random.choice((1e-6, 1e-5, 0.1)),
        "tie_word_embeddings": random.random() < 0.3,
        "rope_parameters": _rope(random),
    }
    if random.random() < 0.3:
        sizes["head_dim"] = 16
    window = random.choice((5, 16, 100))
    kind = random.choice(("llama", "llama", "mistral", "qwen2", "qwen3"))
    if kind == "llama":
        biases: dict[str, Any] = {
            "attention_bias": random.random() < 0.3,
            "mlp_bias": random.random() < 0.3,
        }
        return LlamaConfig(**sizes, **biases)
    if kind == "mistral":
        return MistralConfig(**sizes, sliding_window=random.choice((None, window)))
    windows: dict[str, Any] = {}
    if random.random() < 0.7:
        windows = {"use_sliding_window": True, "sliding_window": window}
        windows["max_window_layers"] = random.randint(0, num_layers)
    elif random.random() < 0.5:
        # A window that is named and not used.
        windows = {"use_sliding_window": False, "sliding_window": window, "max_window_layers": 0}
    if kind == "qwen2":
        sizes.pop("head_dim", None)
        return Qwen2Config(**sizes, **windows)
    return Qwen3Config(**{"head_dim": 8, **sizes}, **windows)


def _rope(random: Random) -> dict[str, Any]:
    theta = random.choice((10000.0, 500.0, 1e6))
    original = random.choice((64, 128))
    kind = random.choice(("default", "default", "linear", "llama3", "yarn"))
    numbers: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": random.choice((2.0, 4.0))},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        },
        "yarn": {
            "factor": MAX_MODEL_LEN / original,
            "original_max_position_embeddings": original,
            **random.choice(({}, {"truncate": True}, {"truncate": False})),
        },
    }
    return {"rope_type": kind, "rope_theta": theta, **numbers[kind]}


def _save(model: PreTrainedModel, folder: Path, random: Random) -> None:
    """In small shards, so that most checkpoints have several, and half the time with the words of
    transformers before version 5."""
    with no_progress_bar():
        model.save_pretrained(folder, max_shard_size=random.choice(("30KB", "5GB")))
    if random.random() < 0.5:
        path = folder / "config.json"
        words = json.loads(path.read_text())
        words.pop("layer_types", None)
        rope = words.pop("rope_parameters")
        words["rope_theta"] = rope.pop("rope_theta")
        words["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        path.write_text(json.dumps(words))


def _prompt(random: Random) -> list[int]:
    """Now and then longer than the pieces in which log-probabilities of prompts are made."""
    length = random.choice((1, 7, 40, 90, 140, 300))
    return [random.randrange(VOCAB_SIZE) for _ in range(random.randint(1, length))]


def _load(folder: Path, longest: int, random: Random) -> LLM:
    """With a pool for the longest prompt and little more, so that what is freed is used again."""
    block_size = random.choice((4, 16))
    return LLM(
        str(folder),
        device="cpu",
        skip_tokenizer=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=4,
        block_size=block_size,
        max_num_batched_tokens=random.choice((16, 300, 1024)),
        num_blocks=2 + -(-(longest + 4) // block_size) + random.randrange(4),
    )


@torch.inference_mode()
def _judge(
    reference: PreTrainedModel, prompts: Sequence[list[int]], outputs: Sequence[RequestOutput]
) -> Iterator[Violation]:
    for prompt, output in zip(prompts, outputs, strict=True):
        [told] = output.outputs
        tokens = [*prompt, *told.token_ids]
        logits: Tensor = reference(torch.tensor([tokens])).logits[0].float()
        due = torch.log_softmax(logits, -1)
        entries: list[TokenLogprobs | None] = list(output.prompt_logprobs or ())
        entries += told.logprobs or ()
        if len(entries) != len(tokens):
            yield _wrong(reference, "not every token has a score", len(entries), len(tokens))
            continue
        for position in range(1, len(tokens)):
            entry, expected = entries[position], float(due[position - 1, tokens[position]])
            got = None if entry is None else (entry.token_ids[0], entry.logprobs[0])
            if (
                got is None
                or got[0] != tokens[position]
                or not abs(got[1] - expected) <= TOLERANCE * max(1.0, abs(expected))
            ):
                what = f"position {position} of {len(tokens)} ({len(prompt)} of the prompt)"
                yield _wrong(reference, f"{what} has another score", got, expected)
                break


def _wrong(reference: PreTrainedModel, what: str, got: object, due: object) -> Violation:
    return violation(ID, -1, what, got=got, due=due, config=_told(reference.config))


def _told(config: Any) -> dict[str, Any]:
    """What a configuration says beyond its class."""
    told: dict[str, Any] = config.to_diff_dict()
    return told
