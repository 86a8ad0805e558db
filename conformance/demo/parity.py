"""How the engine's greedy tokens stand against Hugging Face's, request by request."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from pagetwin.conformance.demo.result import Difference, ParityRow
from pagetwin.conformance.oracles.hf import (
    GreedyOutput,
    HuggingFaceOracle,
    ParityReport,
    compare_greedy,
)
from pagetwin.engine.errors import ModelError
from pagetwin.engine.tokenizer import Tokenizer

_SHOWN_TEXT = 160


class GreedyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a client got who asked for the most likely tokens."""

    request_id: str
    prompt_token_ids: Sequence[int]
    token_ids: Sequence[int]
    max_tokens: int
    """Of the request; or, of a client that hung up, as many as it listened to."""
    ignore_eos: bool
    opening: str
    """The first sentence of the prompt's own text, for people."""


class ParityFindings(msgspec.Struct, frozen=True, kw_only=True):
    """The oracle's report, in the words of the page."""

    tokens_compared: int
    mismatches: int
    near_ties: int
    tau: float
    """Largest gap between logits that rounding can explain."""
    oracle_error: float
    smallest_margin: float
    rows: tuple[ParityRow, ...]
    differences: tuple[Difference, ...]


def judge_tokens(
    folder: Path,
    answers: Sequence[GreedyAnswer],
    tokenizer: Tokenizer,
    eos_token_ids: Sequence[int],
) -> ParityFindings:
    """Runs the oracle over the answers. Raises ModelError if it cannot judge this model."""
    try:
        report = compare_greedy(
            HuggingFaceOracle(folder),
            [
                GreedyOutput(one.prompt_token_ids, one.token_ids, one.max_tokens, one.ignore_eos)
                for one in answers
            ],
            max_tokens=0,
            eos_token_ids=eos_token_ids,
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Hugging Face cannot judge the model in {folder}: {error}; the demo needs a folder "
            "that transformers can read, with float32 or smaller weights"
        ) from error
    return parity_findings(report, answers, tokenizer)


def parity_findings(
    report: ParityReport, answers: Sequence[GreedyAnswer], tokenizer: Tokenizer
) -> ParityFindings:
    """Sorts the report's rows by request; a mismatch becomes a difference with both texts."""
    rows = []
    for index, answer in enumerate(answers):
        verdicts = [row.verdict for row in report.rows if row.prompt == index]
        text = tokenizer.decode(answer.token_ids)
        rows.append(
            ParityRow(
                request_id=answer.request_id,
                tokens_compared=len(answer.token_ids),
                mismatches=verdicts.count("mismatch"),
                near_ties=verdicts.count("near tie"),
                opening=answer.opening,
                output_text=text if len(text) <= _SHOWN_TEXT else text[:_SHOWN_TEXT] + "…",
            )
        )
    differences = tuple(
        Difference(
            what="A greedy token",
            where=f"output position {row.position} of {answers[row.prompt].request_id}",
            engine=_token(row.engine_token, tokenizer),
            other=f"{_token(row.oracle_token, tokenizer)}, better by {row.gap:.3g} in logits",
            other_side="Hugging Face",
        )
        for row in report.rows
        if row.verdict == "mismatch"
    )
    return ParityFindings(
        tokens_compared=report.tokens_compared,
        mismatches=report.token_mismatches,
        near_ties=report.near_ties,
        tau=report.tau,
        oracle_error=report.oracle_error,
        smallest_margin=report.smallest_margin,
        rows=tuple(rows),
        differences=differences,
    )


def _token(token_id: int | None, tokenizer: Tokenizer) -> str:
    if token_id is None:
        return "the end"
    return f"token {token_id} {tokenizer.decode([token_id], skip_special_tokens=False)!r}"
