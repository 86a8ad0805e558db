"""What a request's parameters do to its logits before a token is chosen, and in which order.

`adjust` has the processors that also shape a greedy choice: allowed ids, bad words, min_tokens,
logit_bias, repetition penalty, frequency and presence penalties. `truncate` has those that shape
a random one: temperature, min_p, top_k, top_p. Each stage touches only the rows that ask for it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.engine.beam_search import ending_token_ids
from pagetwin.engine.token_order import first_to_last, order_keys, token_ids

if TYPE_CHECKING:
    from pagetwin.engine.sampler import SamplingRow

_T = TypeVar("_T", int, float)
_Piece = tuple[int, NDArray[np.int64], NDArray[np.floating[Any]]]
"""A row, some of its token ids, and a value for each."""


def adjusts(row: "SamplingRow") -> bool:
    """Whether `adjust` would change anything in this row."""
    params = row.request.sampling_params
    return (
        params.allowed_token_ids is not None
        or bool(row.request.bad_words_token_ids)
        or len(row.output_token_ids) < params.min_tokens
        or bool(params.logit_bias)
        or params.repetition_penalty != 1.0
        or params.frequency_penalty != 0.0
        or params.presence_penalty != 0.0
    )


def adjust(logits: Tensor, rows: Sequence["SamplingRow"]) -> None:
    """Applies the processors to `logits`, float32 [R, V], in place, in the documented order."""
    _keep_allowed(logits, rows)
    _ban(logits, rows)
    _add_bias(logits, rows)
    _penalise_repetition(logits, rows)
    _penalise_output(logits, rows)


def truncate(logits: Tensor, rows: Sequence["SamplingRow"]) -> None:
    """Scales by temperature and removes unlikely tokens from `logits`, float32 [R, V], in place.

    Every row's temperature is above 0. At least one token of each row is kept.
    """
    params = [row.request.sampling_params for row in rows]
    if any(p.temperature != 1.0 for p in params):
        logits.div_(_column(logits, [p.temperature for p in params]))
    _narrow(logits, _min_p, {i: p.min_p for i, p in enumerate(params) if p.min_p > 0.0})
    _narrow(logits, _top_k, {i: p.top_k for i, p in enumerate(params) if p.top_k > 0})
    _narrow(logits, _top_p, {i: p.top_p for i, p in enumerate(params) if p.top_p < 1.0})


def _narrow(
    logits: Tensor, keep: Callable[[Tensor, Sequence[_T]], Tensor], asking: Mapping[int, _T]
) -> None:
    """Removes what `keep` does not keep from the rows that ask for it."""
    if asking:
        index = list(asking)
        kept = keep(logits[index], list(asking.values()))
        logits[index] = logits[index].masked_fill_(~kept, -torch.inf)


def _column(logits: Tensor, values: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
    return torch.tensor(values, dtype=dtype or logits.dtype, device=logits.device)[:, None]


def _min_p(logits: Tensor, min_ps: Sequence[float]) -> Tensor:
    """p >= min_p * max(p) of the softmax, as logit >= max(logit) + log(min_p)."""
    floor = _column(logits, [math.log(p) for p in min_ps], torch.float64)
    return logits >= logits.amax(dim=-1, keepdim=True) + floor


def _top_k(logits: Tensor, top_ks: Sequence[int]) -> Tensor:
    """Not below the k-th largest logit; ties with it are kept, as in transformers."""
    vocab_size = logits.shape[-1]
    ks = [min(k, vocab_size) for k in top_ks]
    largest = logits.topk(max(ks), dim=-1).values
    index = torch.tensor(ks, device=logits.device)[:, None] - 1
    return logits >= largest.gather(1, index)


def _top_p(logits: Tensor, top_ps: Sequence[float]) -> Tensor:
    """The smallest set of first tokens whose mass reaches p, the one that crosses it included.

    Equal tokens are taken lowest id first. Sums run in float64 along the order of the tokens.
    """
    keys = order_keys(logits)
    ordered = first_to_last(keys)
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float64)
    mass = probabilities.gather(1, token_ids(ordered, logits.shape[-1])).cumsum(dim=-1)
    below = (mass < _column(logits, top_ps, torch.float64)).sum(dim=-1, keepdim=True)
    crossing = ordered.gather(1, below.clamp_(max=logits.shape[-1] - 1))
    return keys >= crossing


def _keep_allowed(logits: Tensor, rows: Sequence["SamplingRow"]) -> None:
    for i, row in enumerate(rows):
        allowed = row.request.sampling_params.allowed_token_ids
        if allowed is not None:
            index = torch.tensor(allowed, device=logits.device)
            kept = logits[i, index]
            logits[i] = -torch.inf
            logits[i, index] = kept


def _ban(logits: Tensor, rows: Sequence["SamplingRow"]) -> None:
    """Bad words' last tokens and, before min_tokens, whatever would end the output."""
    vocab_size = logits.shape[-1]
    # A request may name an end that the vocabulary lacks.
    pairs = [(i, t) for i, row in enumerate(rows) for t in _banned(row) if t < vocab_size]
    if pairs:
        index = torch.tensor(pairs, device=logits.device)
        logits[index[:, 0], index[:, 1]] = -torch.inf


def _banned(row: "SamplingRow") -> Iterator[int]:
    """A bad word may begin in the prompt, as in transformers: it is the text that must not
    hold it."""
    for *start, last in row.request.bad_words_token_ids:
        if _ends_with(row, start):
            yield last
    if len(row.output_token_ids) < row.request.sampling_params.min_tokens:
        yield from sorted(ending_token_ids(row.request))


def _ends_with(row: "SamplingRow", start: Sequence[int]) -> bool:
    num_output = len(row.output_token_ids)
    tail = list(row.output_token_ids[max(0, num_output - len(start)) :])
    missing = len(start) - len(tail)
    if missing:
        tail = [*row.request.prompt_token_ids[-missing:], *tail]
    return tail == list(start)


def _add_bias(logits: Tensor, rows: Sequence["SamplingRow"]) -> None:
    pieces: list[_Piece] = []
    for i, row in enumerate(rows):
        bias = row.request.sampling_params.logit_bias
        if bias:
            pieces.append((i, _ids(list(bias)), np.array(list(bias.values()))))
    if pieces:
        *places, biases = _entries(logits, pieces)
        logits[tuple(places)] += biases


def _penalise_repetition(logits: Tensor, rows: Sequence["SamplingRow"]) -> None:
    """Each token of prompt and output once: logits above 0 are divided, others multiplied
    (Keskar et al., CTRL, 2019; transformers' RepetitionPenaltyLogitsProcessor)."""
    pieces: list[_Piece] = []
    for i, row in enumerate(rows):
        penalty = row.request.sampling_params.repetition_penalty
        if penalty != 1.0:
            seen = np.union1d(_ids(row.request.prompt_token_ids), _ids(row.output_token_ids))
            pieces.append((i, seen, np.full(len(seen), penalty)))
    if pieces:
        *places, penalties = _entries(logits, pieces)
        values = logits[tuple(places)]
        logits[tuple(places)] = torch.where(values > 0, values / penalties, values * penalties)


def _penalise_output(logits: Tensor, rows: Sequence["SamplingRow"]) -> None:
    """Subtracts count * frequency_penalty + presence_penalty from each output token's logit."""
    pieces: list[_Piece] = []
    for i, row in enumerate(rows):
        params = row.request.sampling_params
        if params.frequency_penalty or params.presence_penalty:
            seen, counts = np.unique(_ids(row.output_token_ids), return_counts=True)
            pieces.append((i, seen, counts * params.frequency_penalty + params.presence_penalty))
    if pieces:
        *places, penalties = _entries(logits, pieces)
        logits[tuple(places)] -= penalties


def _ids(token_ids: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(token_ids, dtype=np.int64)


def _entries(logits: Tensor, pieces: Sequence[_Piece]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, token ids and values of the entries that `pieces` name, on the logits' device.

    No entry stands twice, so writing through them has one meaning.
    """
    rows = np.repeat([row for row, _, _ in pieces], [len(ids) for _, ids, _ in pieces])
    ids = np.concatenate([ids for _, ids, _ in pieces])
    values = np.concatenate([values for _, _, values in pieces])
    return (
        torch.from_numpy(rows).to(logits.device),
        torch.from_numpy(ids).to(logits.device),
        torch.from_numpy(values).to(logits),
    )
