"""Where an answer stops: ends of sequence, min_tokens and stop strings, by definition.

The same prompts are asked at length, with every end ignored; what they say there decides where the
shorter forms must end, to the exact token and character.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pagetwin.conformance.adapters.protocol import Adapter
from pagetwin.conformance.capability import Capabilities, Flag
from pagetwin.conformance.experiments.asking import Answer, opened, setting_for
from pagetwin.conformance.experiments.courses import Tokens
from pagetwin.conformance.experiments.questions import Questions, evidence_of, questions_config
from pagetwin.conformance.suite.evidence import Evidence
from pagetwin.conformance.suite.experiment import Budget
from pagetwin.engine.sampling_params import SamplingParams

EOS = "life.eos-cuts"
MINIMUM = "life.min-tokens"
STRINGS = "life.stop-strings"
NUM_PROMPTS = 8
NUM_TOKENS = 16
LONGEST_STOP = 4
"""Characters of a stop string."""
_GREEDY: dict[str, Any] = {"temperature": 0.0}


class Stops:
    """Asks prompts at length, and then again with all that may end an answer."""

    id = "stops"
    judges = (EOS, MINIMUM, STRINGS)
    needs = frozenset({Flag.TOKEN_IDS, Flag.TOKEN_PROMPT, Flag.IGNORE_EOS, Flag.STOP_TOKENS})
    weight = 0.5

    def run(self, adapter: Adapter, budget: Budget, seed: int) -> Iterator[Evidence]:
        setting, can = setting_for(adapter), adapter.capabilities()
        config = questions_config(adapter, setting)
        number = 0
        while budget.allows(number):
            with opened(adapter, config, as_it_is=True) as session:
                questions = Questions(
                    session, setting, name="stop", seed=seed + number, num_prompts=NUM_PROMPTS
                )
                yield from _Round(questions, can, setting.vocab_size).judge()
            number += 1


class _Ends(NamedTuple):
    """What may end one answer."""

    eos_token_ids: Tokens
    params: SamplingParams

    def of(self, text: Tokens) -> tuple[Tokens, str]:
        """By definition, of what is said at length: the answer and its reason."""
        params = self.params
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else self.eos_token_ids)}
        limit = params.max_tokens or len(text)
        for count, token in enumerate(text[:limit], start=1):
            if token in stops:
                return text[:count], "stop"
        return text[:limit], "length"


class _Round:
    """One session, and what its prompts say at length."""

    def __init__(self, questions: Questions, can: Capabilities, vocab_size: int) -> None:
        self._questions = questions
        self._random = questions.random
        self._can = can
        self._vocab_size = vocab_size
        self._whole: list[Answer] = []

    def judge(self) -> Iterator[Evidence]:
        at_length = SamplingParams(**_GREEDY, max_tokens=NUM_TOKENS, ignore_eos=True)
        self._whole = self._questions.ask([at_length] * NUM_PROMPTS)
        if not all(answer.token_ids for answer in self._whole):
            # Said by other properties; here there is nothing to hold anything against.
            return
        if self._can.has(Flag.OWN_EOS):
            yield self._judge_eos()
        if self._can.has(Flag.MIN_TOKENS):
            yield self._judge_minimum()
        if self._can.has(Flag.TEXT, Flag.STOP_STRINGS):
            yield self._judge_strings()

    def _judge_eos(self) -> Evidence:
        """Several ends of sequence, here and there a stop token, a limit, or all of it ignored."""
        due = [self._draw_ends(answer.token_ids) for answer in self._whole]
        answers = self._questions.ask(
            [one.params for one in due], eos_token_ids=[one.eos_token_ids for one in due]
        )
        wrong, goals = [], {"ends by end of sequence": 0, "ends of sequence ignored": 0}
        for one, whole, answer in zip(due, self._whole, answers, strict=True):
            tokens, reason = one.of(whole.token_ids)
            # An engine may show the token that ends an answer, or keep it to itself.
            allowed = (tokens, tokens[:-1]) if reason == "stop" else (tokens,)
            if answer.token_ids not in allowed or answer.reason != reason:
                wrong.append(
                    f"{list(answer.token_ids)} with reason {answer.reason!r}, not {list(tokens)} "
                    f"with {reason!r}; ends of sequence {one.eos_token_ids}, stop tokens "
                    f"{one.params.stop_token_ids}, ignore_eos {one.params.ignore_eos}, max_tokens "
                    f"{one.params.max_tokens}; at length the text is {list(whole.token_ids)}"
                )
            is_eos = tokens[-1] in one.eos_token_ids
            goals["ends by end of sequence"] += is_eos and reason == "stop"
            goals["ends of sequence ignored"] += one.params.ignore_eos and any(
                token in one.eos_token_ids for token in tokens
            )
        return evidence_of(EOS, len(due), wrong, goals)

    def _draw_ends(self, text: Tokens) -> _Ends:
        random = self._random
        eos = (self._other(text), random.choice(text))
        stops = (random.choice(text),) if random.random() < 0.3 else ()
        return _Ends(
            eos,
            SamplingParams(
                **_GREEDY,
                max_tokens=random.choice((NUM_TOKENS, NUM_TOKENS, random.randint(1, NUM_TOKENS))),
                stop_token_ids=stops,
                ignore_eos=random.random() < 0.3,
            ),
        )

    def _other(self, text: Tokens) -> int:
        """A token that the text may lack: an end of sequence that never comes."""
        return (text[0] + 1) % self._vocab_size

    def _judge_minimum(self) -> Evidence:
        """The stop token first comes before the minimum, or behind it."""
        params, places = [], []
        for answer in self._whole:
            text = answer.token_ids
            stop = self._random.choice(text)
            place = text.index(stop)
            # With place + 1 engines differ: may the token that fills the minimum stop?
            minimum = self._random.choice(
                [m for m in range(1, NUM_TOKENS + 1) if m != place + 1] or [1]
            )
            places.append(place)
            params.append(
                SamplingParams(
                    **_GREEDY,
                    max_tokens=NUM_TOKENS,
                    min_tokens=minimum,
                    stop_token_ids=(stop,),
                    ignore_eos=True,
                )
            )
        answers = self._questions.ask(params)
        wrong = [
            f"{list(answer.token_ids)} with reason {answer.reason!r}: min_tokens "
            f"{one.min_tokens}, stop token {one.stop_token_ids[0]}; without it the text is "
            f"{list(whole.token_ids)}"
            for one, place, whole, answer in zip(params, places, self._whole, answers, strict=True)
            if not _minimum_holds(one, place, whole.token_ids, answer)
        ]
        early = sum(place + 1 < one.min_tokens for one, place in zip(params, places, strict=True))
        goals = {"stop tokens before min_tokens": early}
        goals["stops behind min_tokens"] = sum(answer.reason == "stop" for answer in answers)
        return evidence_of(MINIMUM, len(params), wrong, goals)

    def _judge_strings(self) -> Evidence:
        stops = [self._draw_stop(answer.text) for answer in self._whole]
        shown = self._can.has(Flag.SHOWN_STOP_STRINGS)
        params = [
            SamplingParams(
                **_GREEDY,
                max_tokens=NUM_TOKENS,
                stop=(stop,) if stop else (),
                ignore_eos=True,
                include_stop_str_in_output=shown and i % 2 == 1,
            )
            for i, stop in enumerate(stops)
        ]
        answers = self._questions.ask(params)
        # What is shown when the answer is cut by its number of tokens, and one token earlier.
        full = self._at([len(answer.token_ids) for answer in answers])
        short = self._at([len(answer.token_ids) - 1 for answer in answers])
        wrong, goals = [], {"ends by stop string": 0, "stop strings over several tokens": 0}
        cases = zip(stops, params, self._whole, answers, full, short, strict=True)
        for stop, one, whole, answer, up_to, before in cases:
            if not stop:
                continue
            begin = whole.text.index(stop)
            said = whole.text[: begin + len(stop) * one.include_stop_str_in_output]
            goals["ends by stop string"] += answer.reason == "stop"
            goals["stop strings over several tokens"] += len(before) > begin
            if (
                answer.reason != "stop"
                or answer.text != said
                or answer.token_ids != whole.token_ids[: len(answer.token_ids)]
                or stop not in up_to
                or stop in before
            ):
                wrong.append(
                    f"{answer.text!r} after {len(answer.token_ids)} tokens with reason "
                    f"{answer.reason!r}, not {said!r} with 'stop'; the stop string is {stop!r}, "
                    f"and those tokens say {up_to!r}, all but the last {before!r}"
                )
        return evidence_of(STRINGS, sum(map(bool, stops)), wrong, goals)

    def _draw_stop(self, text: str) -> str:
        """A piece of the text; none if the text has no whole character."""
        places = [i for i, char in enumerate(text) if char != "\ufffd"]
        if not places:
            return ""
        begin = self._random.choice(places)
        piece = text[begin : begin + self._random.randint(1, LONGEST_STOP)]
        return piece.split("\ufffd")[0]

    def _at(self, limits: Sequence[int]) -> list[str]:
        """What the prompts' first so many tokens say."""
        params = [
            SamplingParams(**_GREEDY, max_tokens=max(1, limit), ignore_eos=True) for limit in limits
        ]
        answers = self._questions.ask(params)
        return [
            answer.text if limit > 0 else "" for answer, limit in zip(answers, limits, strict=True)
        ]


def _minimum_holds(params: SamplingParams, place: int, text: Tokens, answer: Answer) -> bool:
    """Whether the answer is right, where `text` first has the stop token at `place`.

    Before the minimum an engine may forbid the stop token, and then says something else there, or
    not count it.
    """
    [stop], tokens, minimum = params.stop_token_ids, answer.token_ids, params.min_tokens
    if place >= minimum:
        return tokens in (text[: place + 1], text[:place]) and answer.reason == "stop"
    if tokens[:place] != text[:place] or len(tokens) < minimum:
        return False
    at = [i for i, token in enumerate(tokens) if token == stop and i >= minimum]
    if answer.reason == "length":
        return len(tokens) == params.max_tokens and not at
    return answer.reason == "stop" and (not at or at == [len(tokens) - 1])
