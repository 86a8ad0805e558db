"""A slot hands out what the step before its last wait has drawn."""

import torch

from pagetwin.engine.step_slot import StepSlot


def test_tokens_and_flags_are_those_of_the_step_that_ended() -> None:
    slot = StepSlot(4, torch.device("cpu"))
    drawn = torch.tensor([[7, 8, 9, 0], [0, 1, 0, 0]], dtype=torch.int32)
    slot.begin()
    slot.end(drawn)
    drawn.zero_()
    assert slot.wait() == 0.0
    assert slot.drawn(3) == ([7, 8, 9], [0, 1, 0])


def test_a_step_in_which_the_device_draws_nothing_fetches_nothing() -> None:
    slot = StepSlot(2, torch.device("cpu"))
    slot.begin()
    slot.end(None)
    assert slot.wait() == 0.0
    assert slot.drawn(0) == ([], [])
