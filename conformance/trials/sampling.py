"""A batch of logits through the sampler, row by row against an oracle that knows the noise."""

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagetwin.conformance.oracles.noise import known_noise
from pagetwin.conformance.oracles.sampling import adjusted_logits
from pagetwin.conformance.properties import Violation, violation
from pagetwin.conformance.sampling.draws import facts_of, law_of
from pagetwin.engine.request import Request
from pagetwin.engine.sampler import Sampler, SamplerOutput, SamplingRow
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.step import TokenLogprobs

ROUNDING = 1e-4
"""What float32 may do to a logit of magnitude 100."""
Floats = NDArray[np.float64]


def judge_sampler(seed: int, index: int) -> list[Violation]:
    """One random batch: tokens, log-probabilities, and that rows do not depend on each other."""
    return _judge(Random(f"sampler {seed} {index}"), is_rich=False)


def judge_rich_sampler(seed: int, index: int) -> list[Violation]:
    """Likewise of rows that ask for most things at once, and for what the others never do: forced
    tokens, log-probabilities of named tokens, several bad words; with zeros of both signs."""
    return _judge(Random(f"rich sampler {seed} {index}"), is_rich=True)


def _judge(random: Random, *, is_rich: bool) -> list[Violation]:
    vocab_size = random.choice((7, 12, 30, 30, 300))
    sampler = Sampler(vocab_size, seed=random.randrange(100))
    rows = [
        row
        for number in range(random.randint(1, 5))
        for row in _rows(random, f"r{number}", vocab_size, is_rich=is_rich)
    ]
    logits = _logits(random, rows, vocab_size)
    if is_rich:
        logits = torch.where((logits == 0) & (torch.arange(logits.shape[1]) % 2 == 0), -0.0, logits)
    try:
        output = sampler.sample(logits, rows)
        found = list(_compare(sampler, logits, rows, output))
        found += _alone(sampler, logits, rows, output)
        found += _prompt(sampler, logits, random)
    except Exception as error:  # whatever it is: the batch is a valid one
        message = f"the sampler raised {type(error).__name__}: {error}"
        return [violation("life.no-crash", -1, message)]
    return found


def _rows(random: Random, name: str, vocab_size: int, *, is_rich: bool) -> list[SamplingRow]:
    """One request's rows: a single one, or all samples of a group that forks."""
    tokens = range(vocab_size)
    params: dict[str, Any] = {
        "temperature": random.choice((0.0, 0.5, 1.0, 1.0, 2.0, 0.7)),
        "seed": random.choice((None, 1, 2**40 + 5)),
        "logprobs": random.choice((None, None, 0, 1, 3, vocab_size)),
        "max_tokens": 64,
        "n": random.choice((1, 1, 1, 3)),
    }
    if not params["temperature"]:
        params["n"] = 1
    for field, values in _KNOBS.items():
        if random.random() < (0.5 if is_rich else 0.25):
            params[field] = random.choice(values)
    if random.random() < 0.2:
        params["logit_bias"] = {random.choice(tokens): random.choice((-100.0, 3.5, 100.0))}
    if random.random() < 0.15:
        params["allowed_token_ids"] = tuple(sorted(random.sample(tokens, 3)))
    if random.random() < 0.2:
        params["stop_token_ids"] = (random.choice(tokens),)
    # Few different ones, so that they repeat.
    some = random.sample(tokens, 3)
    prompt = tuple(random.choices(some, k=random.randint(1, 6)))
    output = random.choices(some, k=random.choice((0, 1, 2, 3, 8)))
    if is_rich:
        params |= _rich(random, some, vocab_size)
    # A word that the next token may complete, most often.
    begun = (*prompt, *output)[-random.choice((1, 1, 2, 3)) :]
    word = (*(begun if random.random() < 0.7 else some[:1]), random.choice(tokens))
    words = [word] if random.random() < 0.4 else []
    if is_rich:
        words += [(*begun, random.choice(tokens)) for _ in range(random.randrange(3))]
    request = Request(
        request_id=name,
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(**params),
        eos_token_ids=tuple(random.sample(tokens, random.choice((0, 1, 2)))),
        bad_words_token_ids=tuple(words),
    )
    if output or params["n"] == 1:
        return [SamplingRow(f"{name}/0", request, 0, output)]
    return [SamplingRow(f"{name}/{i}", request, i, ()) for i in range(params["n"])]


def _rich(random: Random, some: Sequence[int], vocab_size: int) -> dict[str, Any]:
    """Forced and named tokens, and a bias on a token that penalties see, too."""
    rich: dict[str, Any] = {}
    if random.random() < 0.2:
        rich["trace_decode_token_ids"] = tuple(random.choices(range(vocab_size), k=3))
    if random.random() < 0.3:
        rich["logprob_token_ids"] = tuple(random.sample(range(vocab_size), 3))
    if random.random() < 0.4:
        rich["logit_bias"] = {random.choice(some): random.choice((-2.25, 1.5, 3.5))}
    return rich


_KNOBS: dict[str, tuple[Any, ...]] = {
    "top_p": (0.3, 0.75, 0.9),
    "top_k": (1, 2, 3, 100),
    "min_p": (0.1, 0.5),
    "presence_penalty": (0.5, 2.0, -1.0),
    "frequency_penalty": (0.25, 1.5),
    "repetition_penalty": (1.3, 0.8),
    "min_tokens": (1, 2, 3, 4, 9),
    "ignore_eos": (True,),
}


def _logits(random: Random, rows: Sequence[SamplingRow], vocab_size: int) -> Tensor:
    """[R, vocab_size and some padding]: mostly quarters, so that ties are exact, else anything; a
    request's rows alike; sometimes all below zero (so that a padding column of zeros would win),
    some broken."""
    width = vocab_size + random.choice((0, 0, 3))
    base = random.choice((0.0, 0.0, -60.0))
    by_request: dict[str, list[float]] = {}
    in_quarters = random.random() < 0.7
    for row in rows:
        values = [base + random.gauss(0.0, 2.0) for _ in range(vocab_size)]
        if in_quarters:
            values = [base + random.randint(-12, 12) / 4 for _ in range(vocab_size)]
        if random.random() < 0.1:
            values[random.randrange(vocab_size)] = -math.inf
        if random.random() < 0.05:
            values[random.randrange(vocab_size)] = math.nan
        padding = [random.choice((0.0, 50.0))] * (width - vocab_size)
        by_request.setdefault(row.request.request_id, values + padding)
    return torch.tensor([by_request[row.request.request_id] for row in rows])


def _compare(
    sampler: Sampler, logits: Tensor, rows: Sequence[SamplingRow], output: SamplerOutput
) -> Iterator[Violation]:
    for raw, row in zip(logits[:, : sampler.vocab_size].double().numpy(), rows, strict=True):
        adjusted = _adjusted(raw, row)
        stuck = adjusted is None or not np.isfinite(adjusted).any()
        if stuck != (row.seq_id in output.invalid) or stuck == (row.seq_id in output.sampled):
            yield _wrong("samp.penalties", row, "a row has a token exactly if one can be chosen")
            continue
        if adjusted is None or stuck:
            continue
        token = output.sampled[row.seq_id]
        if not 0 <= token < sampler.vocab_size:
            yield _wrong("samp.support", row, "a token outside the vocabulary", token=token)
            continue
        forced = row.request.sampling_params.trace_decode_token_ids[len(row.output_token_ids) :]
        if forced:
            if token != forced[0]:
                yield _wrong("samp.support", row, "not the forced token", token=token)
        elif row.request.sampling_params.is_greedy:
            yield from _greedy(row, adjusted, raw, token)
        else:
            yield from _drawn(sampler, row, raw, token)
        yield from _logprobs(row, raw, token, output.logprobs.get(row.seq_id))


def _adjusted(raw: Floats, row: SamplingRow) -> Floats | None:
    """None for logits that no choice can be made from."""
    if np.isnan(raw).any() or not np.isfinite(raw).any():
        return None
    return adjusted_logits(raw, row.request, row.output_token_ids)


def _greedy(row: SamplingRow, adjusted: Floats, raw: Floats, token: int) -> Iterator[Violation]:
    if (adjusted == raw).all():
        best = int(adjusted.argmax())  # the lowest of equal ones
        if token != best:
            yield _wrong("samp.penalties", row, "not the largest logit", token=token, best=best)
    elif adjusted[token] < adjusted.max() - ROUNDING:
        best = int(adjusted.argmax())
        yield _wrong("samp.penalties", row, "not the greedy token", token=token, best=best)


def _drawn(sampler: Sampler, row: SamplingRow, raw: Floats, token: int) -> Iterator[Violation]:
    request, index = row.request, len(row.output_token_ids)
    law = law_of(
        raw, request, row.output_token_ids, sample_index=row.sample_index, epsilon=ROUNDING
    )
    noise = known_noise(
        request,
        sample_index=row.sample_index,
        output_index=index,
        engine_seed=sampler.seed,
        vocab_size=sampler.vocab_size,
    )
    facts = facts_of(law, token, v=0.5, noise=noise)
    if not facts.is_allowed:
        yield _wrong("samp.support", row, "a token outside the support", token=token)
    elif facts.lag is not None and facts.lag > 4 * ROUNDING:
        yield _wrong(
            "samp.coupled",
            row,
            "another token wins with the known noise",
            token=token,
            lag=facts.lag,
        )
    elif _is_exact(row):
        # Ties at a boundary are decided by the documented rule, and nothing is left to rounding.
        scores = np.where(law.support.probabilities > 0, law.scores + noise, -np.inf)
        if token != int(scores.argmax()):
            yield _wrong(
                "samp.coupled",
                row,
                "a tie at the edge of the support is decided otherwise",
                token=token,
                wins=int(scores.argmax()),
            )


def _is_exact(row: SamplingRow) -> bool:
    """Whether float32 computes the row's scores and its top-k without rounding."""
    p = row.request.sampling_params
    plain = (p.presence_penalty, p.frequency_penalty, p.repetition_penalty) == (0.0, 0.0, 1.0)
    return plain and p.temperature in (0.5, 1.0, 2.0) and p.top_p == 1.0 and p.min_p == 0.0


def _logprobs(
    row: SamplingRow, raw: Floats, token: int, report: TokenLogprobs | None
) -> Iterator[Violation]:
    """Of the raw logits: the token's own, then the first ones in order."""
    params = row.request.sampling_params
    wanted, named = params.logprobs, params.logprob_token_ids or ()
    if wanted is None and named:
        wanted = 0
    if (wanted is None) != (report is None):
        yield _wrong("samp.logprobs", row, "log-probabilities are there exactly if asked for")
    if wanted is None or report is None:
        return
    finite = raw[np.isfinite(raw)]
    exact = raw - finite.max() - math.log(np.exp(finite - finite.max()).sum())
    order = sorted(range(len(raw)), key=lambda one: (-raw[one], one))
    tokens = list(dict.fromkeys([token, *order[:wanted], *named]))
    ranks = [order.index(one) + 1 for one in tokens]
    values = [float(max(exact[one], -3.5e38)) for one in tokens]
    close = np.allclose(np.maximum(report.logprobs, -1e30), np.maximum(values, -1e30), atol=1e-3)
    if list(report.token_ids) != tokens or list(report.ranks) != ranks or not close:
        yield _wrong(
            "samp.logprobs",
            row,
            "not those of the raw logits",
            report=report,
            tokens=tokens,
            values=values,
        )


def _alone(
    sampler: Sampler, logits: Tensor, rows: Sequence[SamplingRow], output: SamplerOutput
) -> Iterator[Violation]:
    """Each row alone, in a batch of its own: the same bits."""
    for place, row in enumerate(rows):
        single = sampler.sample(logits[place : place + 1].clone(), [row])
        for name in ("sampled", "logprobs", "invalid"):
            together = getattr(output, name).get(row.seq_id)
            if together != getattr(single, name).get(row.seq_id):
                yield _wrong("iso.neighbour", row, f"{name} depends on the other rows")
    if rows and output.sampled:
        reversed_output = sampler.sample(logits.flip(0), list(reversed(rows)))
        if reversed_output.sampled != output.sampled:
            yield _wrong("iso.neighbour", rows[0], "tokens depend on the order of the rows")


def _prompt(sampler: Sampler, logits: Tensor, random: Random) -> Iterator[Violation]:
    """Prompt log-probabilities: of each target, and of as many first tokens as asked for."""
    kept = logits[~logits.isnan().any(-1)][:, : sampler.vocab_size]
    if not len(kept):
        return
    targets = [random.randrange(sampler.vocab_size) for _ in range(len(kept))]
    reports = sampler.prompt_logprobs(kept, targets, 2)
    for raw, target, report in zip(kept.double().numpy(), targets, reports, strict=True):
        request = Request(
            request_id="prompt",
            prompt_token_ids=(0,),
            sampling_params=SamplingParams(logprobs=2),
        )
        yield from _logprobs(SamplingRow("prompt/0", request, 0, ()), raw, target, report)


def _wrong(property_id: str, row: SamplingRow, message: str, **witness: object) -> Violation:
    params = row.request.sampling_params
    return violation(property_id, -1, message, seq_id=row.seq_id, **witness, params=params)
