"""What a request's parameters do to its logits, once more, in float64 and plain words.

Written from the documentation of SamplingParams, for one row at a time and without torch; it shares
nothing with the engine's processors but the fields it reads.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pagetwin.conformance.statistics.support import Truncation
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

Floats = NDArray[np.float64]


def adjusted_logits(logits: Floats, request: Request, output_token_ids: Sequence[int]) -> Floats:
    """Raw logits [vocab] with masks, bias and penalties applied, after so many output tokens.

    In this order: allowed ids, bad words, min_tokens, logit_bias, repetition penalty, frequency and
    presence penalties. This is what a greedy choice maximises and what temperature divides.
    """
    params = request.sampling_params
    text = [*request.prompt_token_ids, *output_token_ids]
    result = np.array(logits, np.float64)
    if params.allowed_token_ids is not None:
        banned = np.ones(len(result), np.bool_)
        banned[list(params.allowed_token_ids)] = False
        result[banned] = -math.inf
    for word in request.bad_words_token_ids:
        if (*text, word[-1])[-len(word) :] == word:
            result[word[-1]] = -math.inf
    if len(output_token_ids) < params.min_tokens:
        ends = params.stop_token_ids + (() if params.ignore_eos else request.eos_token_ids)
        result[list(ends)] = -math.inf
    for token, bias in (params.logit_bias or {}).items():
        result[token] += bias
    penalty = params.repetition_penalty
    for token in set(text) if penalty != 1 else ():
        result[token] *= 1 / penalty if result[token] > 0 else penalty
    is_counted = params.frequency_penalty or params.presence_penalty
    for token in set(output_token_ids) if is_counted else ():
        count = list(output_token_ids).count(token)
        result[token] -= params.frequency_penalty * count + params.presence_penalty
    return result


def truncation_of(params: SamplingParams) -> Truncation:
    """What cuts a random request's support. Raises ValueError for a greedy one, which draws
    nothing."""
    if params.is_greedy:
        raise ValueError("a greedy request has no distribution to truncate")
    return Truncation(params.temperature, params.min_p, params.top_k, params.top_p)
