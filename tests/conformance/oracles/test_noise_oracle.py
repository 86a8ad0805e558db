"""The oracle's noise is the engine's, bit for bit but for the logarithm's last one."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagetwin.conformance.oracles.noise import known_noise, philox
from pagetwin.engine.noise import draw_for, gumbel_noise
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams


def test_philox_gives_the_published_answer() -> None:
    """A known-answer vector of Random123 for philox4x32-10."""
    counter = [np.array([w], np.uint64) for w in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    words = philox(counter, (0xA4093822, 0x299F31D0))[:, 0]
    assert words.tolist() == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@given(
    seed=st.none() | st.integers(-(2**63), 2**63 - 1).filter(lambda seed: seed != -1),
    engine_seed=st.integers(0, 9),
    request_id=st.text("ab/1", min_size=1, max_size=5),
    prompt_length=st.integers(1, 5),
    sample_index=st.integers(0, 300),
    output_index=st.integers(0, 40),
    vocab_size=st.integers(1, 30),
)
def test_the_engine_draws_the_documented_noise(
    seed: int | None,
    engine_seed: int,
    request_id: str,
    prompt_length: int,
    sample_index: int,
    output_index: int,
    vocab_size: int,
) -> None:
    request = Request(
        request_id=request_id,
        prompt_token_ids=(0,) * prompt_length,
        sampling_params=SamplingParams(seed=seed),
    )
    documented = known_noise(
        request,
        sample_index=sample_index,
        output_index=output_index,
        engine_seed=engine_seed,
        vocab_size=vocab_size,
    )
    draw = draw_for(
        seed,
        engine_seed=engine_seed,
        request_id=request_id,
        sample_index=sample_index,
        position=prompt_length + output_index,
    )
    drawn = gumbel_noise([draw], vocab_size, torch.device("cpu"))[0].numpy()
    np.testing.assert_allclose(drawn, documented, rtol=0, atol=1e-13)
