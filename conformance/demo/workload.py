"""Which requests the demo sends, and when: a trace scaled to a small model and a small pool.

Lengths and arrivals follow the trace; the text, the shared instructions, the samples, the
priorities and the aborts are drawn from a seed. The pool is too small for what runs in it, and
the host pool too small for what it gives up, so that everything the demo is about happens.
"""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from pagetwin.conformance.demo.prose import INSTRUCTIONS, SENTENCES
from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import TraceError
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams

CACHE = CacheConfig(block_size=16, num_blocks=29, num_host_blocks=5)
SCHEDULER = SchedulerConfig(
    max_model_len=256,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    policy="priority",
    preemption_mode="swap",
    wait_for_prefix=True,
)
MIN_REQUESTS = 20
"""With fewer, the pool is not under pressure for long enough."""

_LONGEST_PROMPT = 150
_OUTPUT_TOKENS = (8, 40)
_STEPS_PER_ARRIVAL = 2.0
_ABORT_AFTER_TOKENS = 3

WritePrompt = Callable[[str, str, int], tuple[int, ...]]
"""(instruction, passage, number of tokens) to about that many token ids."""


class Lengths(Protocol):
    """What is used of a trace's entry; counts are in tokens."""

    @property
    def arrival_s(self) -> float: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


class DemoRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request, and what its client does."""

    request: Request
    family: str
    """The instruction that it shares with others."""
    opening: str
    """The first sentence of what it asks about."""
    submit_step: int
    abort_after_tokens: int | None = None
    """The client hangs up after so many output tokens; 0 is while the request still waits."""


def trace_window(entries: Sequence[Lengths], *, num_requests: int, seed: int) -> Sequence[Lengths]:
    """That many neighbouring entries of a trace; the seed chooses where.

    Raises TraceError if the trace has fewer.
    """
    if len(entries) < num_requests:
        raise TraceError(
            f"the trace has too few requests: {len(entries)}, asked for {num_requests}; "
            "use a longer trace or a smaller --requests"
        )
    start = random.Random(seed).randrange(len(entries) - num_requests + 1)
    return entries[start : start + num_requests]


def draw_workload(
    window: Sequence[Lengths], write_prompt: WritePrompt, *, seed: int
) -> tuple[DemoRequest, ...]:
    """One request an entry, in order of submission."""
    chance = random.Random(seed)
    num_requests = len(window)
    prompts = _scaled([entry.prompt_tokens for entry in window], 1, _LONGEST_PROMPT)
    outputs = _scaled([entry.output_tokens for entry in window], *_OUTPUT_TOKENS)
    arrivals = _arrival_steps([entry.arrival_s for entry in window])
    aborts = {num_requests // 3: 0, 2 * num_requests // 3: _ABORT_AFTER_TOKENS}
    width = len(str(num_requests - 1))
    requests = []
    for index in range(num_requests):
        family = chance.choice(sorted(INSTRUCTIONS))
        first = chance.randrange(len(SENTENCES))
        passage = " ".join((*SENTENCES[first:], *SENTENCES[:first]))
        abort_after = aborts.get(index)
        forks = index % 5 == 1 and abort_after is None
        request = Request(
            request_id=f"r{index:0{width}}",
            prompt_token_ids=write_prompt(INSTRUCTIONS[family], passage, prompts[index]),
            sampling_params=_sampling_params(
                outputs[index], chance, forks=forks, heeds_eos=index % 4 == 3
            ),
            arrival_s=float(arrivals[index]),
            priority=chance.choice((0, 1, 1, 2)),
        )
        requests.append(
            DemoRequest(
                request=request,
                family=family,
                opening=SENTENCES[first],
                submit_step=arrivals[index],
                abort_after_tokens=abort_after,
            )
        )
    return tuple(requests)


def _sampling_params(
    max_tokens: int, chance: random.Random, *, forks: bool, heeds_eos: bool
) -> SamplingParams:
    """Outputs have the trace's length, except where the model may end them sooner."""
    if not forks:
        return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=not heeds_eos)
    return SamplingParams(
        n=chance.choice((2, 3)),
        temperature=0.8,
        top_p=0.95,
        seed=chance.randrange(2**31),
        max_tokens=max_tokens,
        ignore_eos=not heeds_eos,
    )


def _scaled(lengths: Sequence[int], least: int, most: int) -> list[int]:
    """Lengths from least to most, in proportion to the trace's up to twice its median."""
    cap = max(1, 2 * sorted(lengths)[len(lengths) // 2])
    return [least + round((most - least) * min(1.0, length / cap)) for length in lengths]


def _arrival_steps(arrivals_s: Sequence[float]) -> list[int]:
    """Engine steps before which the requests arrive: the trace's clock, made to run faster."""
    ordered = sorted(arrivals_s)
    span = ordered[-1] - ordered[0]
    steps = _STEPS_PER_ARRIVAL * len(ordered)
    return [round((at - ordered[0]) / span * steps) if span > 0 else 0 for at in ordered]
