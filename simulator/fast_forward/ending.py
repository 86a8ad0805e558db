"""Decides in advance how long an output gets: the limits are known, and the script is."""

from typing import NamedTuple

from pagetwin.engine.request import Request
from pagetwin.engine.step import FinishReason
from pagetwin.simulator.token_source import ScriptedTokens


class Ending(NamedTuple):
    """Output tokens of a sequence when it ends, and the reason."""

    num_output_tokens: int
    reasons: tuple[FinishReason]


def first_stop(
    request: Request, sample_index: int, positions: range, tokens: ScriptedTokens
) -> int | None:
    """The first of the output positions whose token ends the sequence (P5.1a); None if none."""
    params = request.sampling_params
    stop_ids = params.stop_token_ids
    if not params.ignore_eos:
        stop_ids += request.eos_token_ids
    if not stop_ids:
        return None
    for position in positions:
        is_past_minimum = position >= params.min_tokens
        if is_past_minimum and tokens.token(request, sample_index, position) in stop_ids:
            return position
    return None


def ending(request: Request, longest: int, tokens: ScriptedTokens) -> Ending:
    """How a request of one sample ends, which a limit ends at `longest` output tokens."""
    stop = first_stop(request, 0, range(longest), tokens)
    return Ending(longest, ("length",)) if stop is None else Ending(stop + 1, ("stop",))
