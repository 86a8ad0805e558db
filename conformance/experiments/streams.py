"""Streams: what comes in pieces adds up to what comes whole."""

from collections.abc import Iterator
from typing import Any

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.experiments.agreement import compare
from pagetwin.conformance.experiments.asking import opened, setting_for
from pagetwin.conformance.experiments.courses import Setting
from pagetwin.conformance.experiments.questions import Questions, evidence_of, questions_config
from pagetwin.conformance.observation import pieces_of
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.sampling_params import SamplingParams

STREAMS = "life.streams-add-up"
NUM_PROMPTS = 6
NUM_TOKENS = 14
FORMS: tuple[dict[str, Any], ...] = (
    {"output_kind": "final_only"},
    {"output_kind": "delta"},
    {"output_kind": "delta", "stream_interval": 3},
    {"output_kind": "cumulative"},
)
"""Ways to ask for the same answer; the first, whole, is what the others are held against."""


class Streams:
    """Asks prompts with all sorts of ends, whole and in pieces of several kinds."""

    id = "streams"
    judges = (STREAMS,)
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT, Flag.IGNORE_EOS, Flag.STREAMING})
    weight = 0.5

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        setting, dtype = setting_for(adapter), adapter.describe().dtype
        config = questions_config(adapter, setting)
        number = 0
        while budget.allows(number):
            with opened(adapter, config, as_it_is=True) as session:
                questions = Questions(
                    session, setting, name="stream", seed=seed + number, num_prompts=NUM_PROMPTS
                )
                yield _judge(questions, _params(questions, setting, adapter), dtype)
            number += 1


def _params(questions: Questions, setting: Setting, adapter: Adapter) -> list[dict[str, Any]]:
    """What the prompts are asked with, but for the form."""
    random, can = questions.random, adapter.capabilities()
    stops = questions.ask([SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)])
    text = stops[0].text
    made = []
    for number in range(NUM_PROMPTS):
        one: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": random.randint(NUM_TOKENS // 2, NUM_TOKENS),
            "ignore_eos": True,
            "logprobs": setting.num_logprobs,
        }
        if can.has(Flag.STOP_STRINGS) and text and number % 2:
            begin = random.randrange(len(text))
            one["stop"] = (text[begin : begin + 1 + number % 3],)
            shown = number % 4 == 1 and can.has(Flag.SHOWN_STOP_STRINGS)
            one["include_stop_str_in_output"] = shown
        if can.has(Flag.STOP_TOKENS) and number % 3 == 0:
            one["stop_token_ids"] = (random.randrange(setting.vocab_size),)
        made.append(one)
    return made


def _judge(questions: Questions, params: list[dict[str, Any]], dtype: str) -> Evidence:
    whole, *others = FORMS
    expected = questions.ask([SamplingParams(**one, **whole) for one in params])
    wrong, in_pieces = [], 0
    for form in others:
        before = len(questions.observed)
        answers = questions.ask([SamplingParams(**one, **form) for one in params])
        pieces = pieces_of(questions.observed[before:])
        in_pieces += sum(count > 1 for count in pieces.values())
        for one, first, second in zip(params, expected, answers, strict=True):
            difference = compare(first, second, dtype=dtype, same_bits=False, is_greedy=True)
            same_text = first.token_ids != second.token_ids or first.text == second.text
            if difference.difference is not None or not same_text:
                wrong.append(
                    f"{form} adds up to {second.text!r}, {list(second.token_ids)} with reason "
                    f"{second.reason!r}; asked for whole it is {first.text!r}, "
                    f"{list(first.token_ids)} with {first.reason!r} ({one})"
                )
    goals = {"answers that came in pieces": in_pieces}
    return evidence_of(STREAMS, len(others) * len(params), wrong, goals)
