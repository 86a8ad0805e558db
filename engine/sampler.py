"""Which token each sequence gets from its logits.

The order, for each row: the raw logits are kept for log-probabilities, then (in float32)
allowed ids, bad words, min_tokens, logit_bias, repetition, frequency and presence penalties,
temperature, min_p, top_k, top_p, and the choice. A greedy row skips the last five and takes the
largest logit, of equal ones the lowest token id. The rows of a batch do not influence each
other: a row's token and log-probabilities have the same bits alone and among any others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagetwin.engine.beam_search import num_candidates
from pagetwin.engine.errors import ModelError
from pagetwin.engine.logits import adjust, adjusts, truncate
from pagetwin.engine.logprobs import first_tokens, report_logprobs
from pagetwin.engine.noise import Draw, draw_for, gumbel_noise, gumbel_noise_at
from pagetwin.engine.request import Request
from pagetwin.engine.step import TokenLogprobs

PROMPT_ROWS = 64
"""Prompt positions whose log-probabilities are computed at once; bounds memory."""
NOISE_SPARSITY = 16
"""Noise is made for kept tokens alone where they are fewer than one in so many; the noise is the
same, and only the time differs."""


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One logits row that is due a token. A group that forks has one per sample."""

    seq_id: str
    request: Request
    sample_index: int
    output_token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class SamplerOutput:
    """Tokens and log-probabilities by sequence id.

    `invalid` says, in words, why a row has no token and no log-probabilities: its logits are
    broken, or its masks leave nothing. The other rows are what they would be without it.
    """

    sampled: dict[str, int] = field(default_factory=dict)
    logprobs: dict[str, TokenLogprobs] = field(default_factory=dict)
    """Of the raw logits, for rows that asked. A beam has no token but its candidates here."""
    invalid: dict[str, str] = field(default_factory=dict)

    def drop(self, seq_id: str, reason: str) -> None:
        """The row has no token after all, and this is why."""
        self.sampled.pop(seq_id, None)
        self.logprobs.pop(seq_id, None)
        self.invalid[seq_id] = reason


class Sampler:
    """Stateless but for its seed, which keys the noise of requests without a seed of their own."""

    def __init__(self, vocab_size: int, *, seed: int = 0) -> None:
        self.vocab_size = vocab_size
        self.seed = seed

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> SamplerOutput:
        """Chooses a token for each row of `logits`, [R, at least vocab_size], any strides.

        Columns from vocab_size on are padding and never chosen. `logits` is not changed.
        """
        assert logits.shape[0] == len(rows), "one logits row for each sampling row"
        output = SamplerOutput()
        if not rows:
            return output
        logits = self._used_columns(logits)
        tokens, broken = _largest(logits)
        for i in broken:
            output.invalid[rows[i].seq_id] = "its logits hold NaN, +inf or no finite number"
        beams: list[int] = []
        singles: list[int] = []
        for i in sorted(set(range(len(rows))).difference(broken)):
            (singles if rows[i].request.beam_search is None else beams).append(i)
        for i in self._choose(logits, rows, singles, tokens):
            output.invalid[rows[i].seq_id] = "its allowed ids, bad words and minimum leave no token"
            singles.remove(i)
        output.sampled.update({rows[i].seq_id: tokens[i] for i in singles})
        _report_singles(logits, rows, [(i, tokens[i]) for i in singles], output)
        _report_beams(logits, rows, beams, output)
        return output

    def prompt_logprobs(
        self, logits: Tensor, target_ids: Sequence[int], k: int
    ) -> tuple[TokenLogprobs, ...]:
        """Log-probabilities of raw `logits`, [R, at least vocab_size]: row i's of target_ids[i],
        then of its k first tokens (-1 = all). Raises ModelError if a row holds NaN or +inf."""
        assert logits.shape[0] == len(target_ids), "one target for each row"
        reports: list[TokenLogprobs] = []
        for start in range(0, len(target_ids), PROMPT_ROWS):
            part = self._used_columns(logits[start : start + PROMPT_ROWS])
            targets = target_ids[start : start + PROMPT_ROWS]
            _, broken = _largest(part)
            if broken:
                raise ModelError(
                    f"the prompt's logits hold NaN, +inf or no finite number in row "
                    f"{start + broken[0]} of {len(target_ids)}; the checkpoint may be damaged, "
                    "or its numbers too large for this dtype: try float32"
                )
            reports += report_logprobs(part, targets, [k] * len(targets), [()] * len(targets))
        return tuple(reports)

    def _used_columns(self, logits: Tensor) -> Tensor:
        assert logits.shape[1] >= self.vocab_size, "fewer logits than tokens"
        return logits[:, : self.vocab_size].float()

    def _choose(
        self, logits: Tensor, rows: Sequence[SamplingRow], singles: list[int], tokens: list[int]
    ) -> list[int]:
        """Replaces the greedy `tokens` of those rows that want more; returns the rows left with
        no token to choose."""
        forced = {i: token for i in singles if (token := _forced_token(rows[i])) is not None}
        free = [i for i in singles if i not in forced]
        greedy = [i for i in free if rows[i].request.sampling_params.is_greedy]
        drawn = [i for i in free if not rows[i].request.sampling_params.is_greedy]
        stuck: list[int] = []
        for index, is_random in (([i for i in greedy if adjusts(rows[i])], False), (drawn, True)):
            if index:
                scores = self._scores(logits[index], [rows[i] for i in index], is_random=is_random)
                best, without = _largest(scores)
                stuck += [index[j] for j in without]
                for i, token in zip(index, best, strict=True):
                    tokens[i] = token
        for i, token in forced.items():
            tokens[i] = token
        return stuck

    def _scores(self, logits: Tensor, rows: Sequence[SamplingRow], *, is_random: bool) -> Tensor:
        """What the choice maximises: adjusted logits, of random rows with Gumbel noise added.

        The maximum of logits and independent Gumbel noise is a draw from their softmax (Gumbel,
        1954; Maddison, Tarlow, Minka: A* sampling, NIPS 2014). `logits` is changed.
        """
        adjust(logits, rows)
        if not is_random:
            return logits
        truncate(logits, rows)
        draws = [self._draw(row) for row in rows]
        kept = torch.isfinite(logits)
        if int(kept.sum()) * NOISE_SPARSITY > kept.numel():
            return gumbel_noise(draws, self.vocab_size, logits.device).add_(logits)
        places = kept.nonzero(as_tuple=True)
        scores = torch.full_like(logits, -torch.inf, dtype=torch.float64)
        scores[places] = gumbel_noise_at(draws, *places).add_(logits[places])
        return scores

    def _draw(self, row: SamplingRow) -> Draw:
        return draw_for(
            row.request.sampling_params.seed,
            engine_seed=self.seed,
            request_id=row.request.request_id,
            sample_index=row.sample_index,
            position=row.request.num_prompt_tokens + len(row.output_token_ids),
        )


def _largest(scores: Tensor) -> tuple[list[int], list[int]]:
    """The largest score's token of each row, the lowest of equal ones, and the rows in which
    that score is not a finite number (torch takes NaN for the largest)."""
    peaks, tokens = scores.max(dim=-1)
    finite = torch.isfinite(peaks).tolist()
    return tokens.tolist(), [i for i, ok in enumerate(finite) if not ok]


def _forced_token(row: SamplingRow) -> int | None:
    forced = row.request.sampling_params.trace_decode_token_ids
    place = len(row.output_token_ids)
    return forced[place] if place < len(forced) else None


def _report_singles(
    logits: Tensor,
    rows: Sequence[SamplingRow],
    chosen: Sequence[tuple[int, int]],
    output: SamplerOutput,
) -> None:
    """Log-probabilities of the raw logits for those of the (row, token) pairs that want them."""
    asking = [
        (i, token, rows[i].request.sampling_params, num_top)
        for i, token in chosen
        if (num_top := rows[i].request.sampling_params.num_logprobs) is not None
    ]
    if asking:
        reports = report_logprobs(
            logits[[i for i, _, _, _ in asking]],
            [token for _, token, _, _ in asking],
            [num_top for _, _, _, num_top in asking],
            [params.logprob_token_ids or () for _, _, params, _ in asking],
        )
        for (i, _, _, _), report in zip(asking, reports, strict=True):
            output.logprobs[rows[i].seq_id] = report


def _report_beams(
    logits: Tensor, rows: Sequence[SamplingRow], beams: Sequence[int], output: SamplerOutput
) -> None:
    """The candidates of beams: processors work on the log-softmax, and the result is not
    normalised again, as in transformers' `GenerationMixin._beam_search`."""
    if not beams:
        return
    scores = torch.log_softmax(logits[beams], dim=-1)
    adjust(scores, [rows[i] for i in beams])
    for i, row_scores in zip(beams, scores, strict=True):
        output.logprobs[rows[i].seq_id] = first_tokens(row_scores, num_candidates(rows[i].request))
