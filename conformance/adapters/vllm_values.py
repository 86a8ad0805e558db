"""What goes to vLLM with a request, and what its outputs say, in our vocabulary."""

from typing import Any

from pagetwin.conformance.adapters.foreign import Sampled
from pagetwin.conformance.observation import Scored
from pagetwin.engine.request import Request

SENT = (
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "min_tokens",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
)
"""Of the sampling parameters; they have the same names there."""


def sampling_params(request: Request, max_tokens: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = request.sampling_params
    stops = [*params.stop_token_ids, *(() if params.ignore_eos else request.eos_token_ids)]
    fields = {name: getattr(params, name) for name in SENT}
    # A tuple would index several dimensions of the tensor of its mask.
    allowed = params.allowed_token_ids
    fields["allowed_token_ids"] = None if allowed is None else list(allowed)
    return SamplingParams(
        **fields,
        n=request.num_samples,
        temperature=params.temperature,
        max_tokens=max_tokens,
        stop_token_ids=stops,
        logprobs=params.logprobs or 0,
        prompt_logprobs=params.prompt_logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def prompt_scores(output: Any) -> list[float]:
    """Of each prompt token after the first."""
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [scores[token].logprob for token, scores in pairs]


def sampled_tokens(output: Any) -> list[Sampled]:
    """New tokens of the one sample that a delta is of."""
    [sample] = output.outputs
    tokens = []
    for index, token in enumerate(sample.token_ids):
        scores = sample.logprobs[index] if sample.logprobs else {}
        ranked = sorted(scores.items(), key=lambda item: (item[1].rank, item[0]))
        last = index == len(sample.token_ids) - 1
        tokens.append(
            Sampled(
                output.request_id,
                token,
                scores[token].logprob if token in scores else None,
                sample.finish_reason if last else None,
                tuple(Scored(other, score.logprob) for other, score in ranked),
                sample.index,
            )
        )
    return tokens
