"""A request is whole when it is made: nothing that it asks for can be lost later."""

import pytest

from pagetwin.engine.errors import RequestError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams


def test_bad_words_without_their_token_ids_are_refused() -> None:
    params = SamplingParams(bad_words=("no", "never"))
    with pytest.raises(RequestError, match=r"'r'.*bad_words.*LLMEngine"):
        Request(request_id="r", prompt_token_ids=(1,), sampling_params=params)
    ids = ((5,), (6, 7))
    asked = Request(
        request_id="r", prompt_token_ids=(1,), sampling_params=params, bad_words_token_ids=ids
    )
    assert asked.bad_words_token_ids == ids
