"""Outputs are plain data that travels as JSON."""

import msgspec
import pytest

from pagetwin.engine.outputs import CompletionOutput, RequestOutput
from pagetwin.engine.step import TokenLogprobs


def test_an_output_survives_a_round_trip_through_json() -> None:
    logprobs = TokenLogprobs(token_ids=(4, 7), logprobs=(-0.5, -1.0), ranks=(1, 2))
    output = RequestOutput(
        request_id="r",
        prompt=None,
        prompt_token_ids=(1, 2),
        outputs=(
            CompletionOutput(index=0, text="é", token_ids=(4,), logprobs=(logprobs,)),
            CompletionOutput(index=1, text="", token_ids=(), finish_reason="stop", stop_reason="é"),
        ),
        finished=False,
        prompt_logprobs=(None, logprobs),
    )
    assert msgspec.json.decode(msgspec.json.encode(output), type=RequestOutput) == output
    assert [completion.finished for completion in output.outputs] == [False, True]


def test_an_output_cannot_be_changed() -> None:
    completion = CompletionOutput(index=0, text="", token_ids=())
    with pytest.raises(AttributeError):
        completion.text = "other"  # type: ignore[misc]
