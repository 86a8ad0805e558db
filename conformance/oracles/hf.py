"""Hugging Face as oracle: are an engine's greedy tokens those of the reference model?

The reference is transformers' own model in eager float32, run by teacher forcing: one forward
over prompt and output gives, at every position, what greedy decoding would have chosen after
exactly the tokens that the engine had. Where the two part in a near tie, the comparison thus
goes on behind the engine's token and loses no later position.

**When a difference is a near tie.** With exact logits z, an engine whose logits are off by at
most e_engine, and an oracle off by at most e_oracle, the engine may prefer token b to the
oracle's choice a only if the oracle's own gap z_a - z_b is at most 2 (e_engine + e_oracle).
e_oracle is measured: the largest difference between the oracle in float32 and the same model in
float64, over all positions of the first few outputs. An engine may be at most ENGINE_TO_ORACLE
times as far from exact as the oracle (the three-way rule), so

    tau = 2 * (ENGINE_TO_ORACLE + 1) * e_oracle.

A difference with a gap above tau is a mismatch: rounding cannot explain it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from pagetwin.conformance.numerics.three_way import ENGINE_TO_ORACLE

MAX_ERROR = 1e-2
"""A float32 error above this is no rounding: the model or its inputs are ill-conditioned."""


class ParityRow(NamedTuple):
    """One position at which an engine's token is not the oracle's."""

    prompt: int
    """Index of the prompt."""
    position: int
    """Index among the output tokens."""
    engine_token: int | None
    """None where the engine stopped and the oracle would not have."""
    oracle_token: int | None
    """None where the engine went on after the end."""
    gap: float
    """By how much the oracle prefers its own token, in logits."""
    verdict: Literal["near tie", "mismatch"]


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Greedy tokens against the oracle, position by position."""

    tokens_compared: int
    token_mismatches: int
    near_ties: int
    tau: float
    """Largest gap that counts as a near tie."""
    oracle_error: float
    """Largest measured difference between float32 and float64 logits."""
    smallest_margin: float
    """Smallest gap between the oracle's best and second token, over all positions."""
    rows: tuple[ParityRow, ...]
    """The near ties and mismatches."""

    def explain(self) -> str:
        lines = [
            f"{self.tokens_compared} tokens compared, {self.token_mismatches} mismatches, "
            f"{self.near_ties} near ties (tau {self.tau:.3g}, smallest margin "
            f"{self.smallest_margin:.3g})"
        ]
        lines += [
            f"  prompt {row.prompt} position {row.position}: engine {row.engine_token}, "
            f"oracle {row.oracle_token}, gap {row.gap:.3g}: {row.verdict}"
            for row in self.rows
        ]
        return "\n".join(lines)


class HuggingFaceOracle:
    """A model folder in Hugging Face format, run by transformers on the CPU."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.folder = folder
        self.model = _load(folder, dtype)
        self._exact: PreTrainedModel | None = None

    @torch.inference_mode()
    def greedy_tokens(
        self, prompt_ids: Sequence[int], max_tokens: int, eos_token_ids: Iterable[int] = ()
    ) -> list[int]:
        """Greedy decoding, one forward over everything a token: slow, and without a KV cache.

        Ends after `max_tokens` tokens or with the first EOS, which is the last token returned.
        """
        eos = set(eos_token_ids)
        tokens = list(prompt_ids)
        while len(tokens) - len(prompt_ids) < max_tokens:
            tokens.append(int(_logits(self.model, tokens)[-1].argmax()))
            if tokens[-1] in eos:
                break
        return tokens[len(prompt_ids) :]

    @torch.inference_mode()
    def scores(self, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Tensor:
        """Teacher-forced logits [len(output_ids) + 1, vocab]: row i is the oracle's opinion after
        the prompt and the first i output tokens."""
        return _scores(self.model, prompt_ids, output_ids)

    @torch.inference_mode()
    def exact_scores(self, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Tensor:
        """As `scores`, by the same weights in float64. Loads a second model the first time."""
        if self._exact is None:
            self._exact = _load(self.folder, torch.float64)
        return _scores(self._exact, prompt_ids, output_ids)


class GreedyOutput(NamedTuple):
    """What an engine made of one prompt at temperature 0."""

    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    max_tokens: int | None = None
    """Its own limit, where it is not the one of the comparison."""
    ignore_eos: bool = False


def compare_greedy(
    oracle: HuggingFaceOracle,
    outputs: Sequence[GreedyOutput],
    *,
    max_tokens: int,
    eos_token_ids: Iterable[int] = (),
    calibration: int = 4,
) -> ParityReport:
    """Judges every output token of an engine by one teacher-forced forward per output.

    Also judges where each output ends: with its first EOS (unless it was to ignore it), else at
    its own `max_tokens` or, if it has none, at the one given here. The oracle's own
    error is measured on the first `calibration` outputs. Raises ValueError if there is nothing
    to compare, or if that error is too large for float32.
    """
    if not outputs:
        raise ValueError("compare_greedy got no outputs; there is nothing to compare")
    eos = frozenset(eos_token_ids)
    error = max(_oracle_error(oracle, output) for output in outputs[: max(1, calibration)])
    if error > MAX_ERROR:
        raise ValueError(
            f"the oracle's float32 logits differ by {error:.3g} from its float64 ones, above "
            f"{MAX_ERROR}; compare with a better conditioned model"
        )
    tau = 2 * (ENGINE_TO_ORACLE + 1) * error
    rows: list[ParityRow] = []
    compared = 0
    margin = float("inf")
    for index, output in enumerate(outputs):
        logits = oracle.scores(output.prompt_ids, output.output_ids)
        best = logits.topk(2, dim=-1).values
        count = len(output.output_ids)
        compared += count
        if count:
            margin = min(margin, float((best[:count, 0] - best[:count, 1]).min()))
        rows += _differing_tokens(index, output, logits, tau)
        limit = max_tokens if output.max_tokens is None else output.max_tokens
        ends = frozenset[int]() if output.ignore_eos else eos
        rows += _wrong_end(index, output, logits, limit, ends)
    ties = sum(row.verdict == "near tie" for row in rows)
    return ParityReport(
        tokens_compared=compared,
        token_mismatches=len(rows) - ties,
        near_ties=ties,
        tau=tau,
        oracle_error=error,
        smallest_margin=margin,
        rows=tuple(rows),
    )


def _differing_tokens(
    index: int, output: GreedyOutput, logits: Tensor, tau: float
) -> list[ParityRow]:
    chosen = torch.tensor(list(output.output_ids), dtype=torch.int64)
    own = logits[: len(chosen)]
    best, best_tokens = own.max(dim=-1)
    gaps = best - own.gather(1, chosen[:, None])[:, 0]
    rows = []
    for position in (chosen != best_tokens).nonzero()[:, 0].tolist():
        gap = float(gaps[position])
        rows.append(
            ParityRow(
                index,
                position,
                int(chosen[position]),
                int(best_tokens[position]),
                gap,
                "near tie" if gap <= tau else "mismatch",
            )
        )
    return rows


def _wrong_end(
    index: int, output: GreedyOutput, logits: Tensor, max_tokens: int, eos: frozenset[int]
) -> list[ParityRow]:
    """An output must end with its first EOS, or else be max_tokens long."""
    tokens = list(output.output_ids)
    first = next((i for i, token in enumerate(tokens) if token in eos), None)
    right = max_tokens if first is None else min(first + 1, max_tokens)
    if len(tokens) == right:
        return []
    if len(tokens) > right:
        return [ParityRow(index, right, tokens[right], None, float("inf"), "mismatch")]
    missed = int(logits[len(tokens)].argmax())
    return [ParityRow(index, len(tokens), None, missed, float("inf"), "mismatch")]


def _oracle_error(oracle: HuggingFaceOracle, output: GreedyOutput) -> float:
    """Largest difference between float32 and float64 logits, a common shift taken out.

    A shift moves all tokens of a position alike, so it can turn no comparison.
    """
    prompt, tokens = output.prompt_ids, output.output_ids
    difference = oracle.scores(prompt, tokens).double() - oracle.exact_scores(prompt, tokens)
    difference -= difference.mean(dim=-1, keepdim=True)
    return float(difference.abs().max())


def _load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    with no_progress_bar():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", local_files_only=True
        )
    model.requires_grad_(False).train(False)
    return model


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """For who works in the background: bars would stand between the lines of a report."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _scores(model: PreTrainedModel, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> Tensor:
    return _logits(model, [*prompt_ids, *output_ids])[len(prompt_ids) - 1 :]


def _logits(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
    return logits
