"""The shrinker's steps: from one scenario to those that are a little smaller, in fixed order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from pagetwin.conformance.scenario import (
    AbortEvent,
    AnyEvent,
    PreemptEvent,
    Scenario,
    ScenarioRequest,
    SubmitEvent,
)
from pagetwin.engine.request import Request, sequence_id
from pagetwin.engine.sampling_params import SamplingParams

Item = TypeVar("Item")

Pass = Callable[[Scenario], Iterator[Scenario]]

_NAMING = (SubmitEvent, AbortEvent, PreemptEvent)
"""Events that name a request."""
_replace = msgspec.structs.replace


def _variants(scenario: Scenario, changes: Iterable[dict[str, Any]]) -> Iterator[Scenario]:
    """The scenario with each of the changes; those that do not fit together are left out."""
    for change in changes:
        try:
            yield _replace(scenario, **change)
        except ValueError:
            continue


def without_some(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """The items less one part: halves first, then quarters, down to single ones."""
    size = (len(items) + 1) // 2
    while size >= 1 and items:
        for start in range(0, len(items), size):
            yield (*items[:start], *items[start + size :])
        size = 0 if size == 1 else (size + 1) // 2


def smaller_numbers(value: int, least: int) -> Iterator[int]:
    """Numbers from `least` up to just below `value`, by halving the distance."""
    distance = value - least
    while distance > 0:
        yield value - distance
        distance //= 2


def fewer_requests(scenario: Scenario) -> Iterator[Scenario]:
    """Drops requests with all that names them."""
    for kept in without_some(scenario.requests):
        names = {entry.request.request_id for entry in kept}
        events = tuple(
            event
            for event in scenario.events
            if not isinstance(event, _NAMING) or event.request_id in names
        )
        outputs = tuple(o for o in scenario.outputs if o.seq_id.rpartition("/")[0] in names)
        failing = tuple(name for name in scenario.failing_requests if name in names)
        change = {
            "requests": kept,
            "events": events,
            "outputs": outputs,
            "failing_requests": failing,
        }
        yield from _variants(scenario, [change])


def fewer_events(scenario: Scenario) -> Iterator[Scenario]:
    """Drops aborts, forced preemptions, resets, early results and made failures."""
    places = [i for i, e in enumerate(scenario.events) if not isinstance(e, SubmitEvent)]
    for kept in without_some(places):
        dropped = set(places) - set(kept)
        events = [event for i, event in enumerate(scenario.events) if i not in dropped]
        yield from _variants(scenario, [{"events": tuple(events)}])
    yield from _variants(
        scenario, ({"failing_requests": kept} for kept in without_some(scenario.failing_requests))
    )


def earlier_events(scenario: Scenario) -> Iterator[Scenario]:
    """Closes gaps between rounds, then moves single events forward."""
    rounds = sorted({event.round for event in scenario.events})
    for after, before in zip(rounds, [-1, *rounds], strict=False):
        for gap in smaller_numbers(after, before + 1):
            shift = after - gap
            moved = [_move(e, e.round - shift) if e.round >= after else e for e in scenario.events]
            yield from _variants(scenario, [{"events": tuple(moved)}])
    for index, event in enumerate(scenario.events):
        options = [_move(event, number) for number in smaller_numbers(event.round, 0)]
        if event.in_flight:
            options.append(_replace(event, in_flight=False))
        for option in options:
            events = (*scenario.events[:index], option, *scenario.events[index + 1 :])
            yield from _variants(scenario, [{"events": events}])


def _move(event: AnyEvent, number: int) -> AnyEvent:
    return _replace(event, round=number)


def shorter_prompts(scenario: Scenario) -> Iterator[Scenario]:
    """Cuts prompts at either end: to block edges and beside them, by halves, by one token."""
    size = scenario.cache.block_size
    filled = scenario.requests_by_id()
    for index, entry in enumerate(scenario.requests):
        prompt = filled[entry.request.request_id].prompt_token_ids
        edges = [k * size + d for k in range(len(prompt) // size + 1) for d in (-1, 0, 1)]
        halves = list(smaller_numbers(len(prompt), 1))
        lengths = sorted({n for n in edges + halves if 1 <= n < len(prompt)})
        for length in lengths:
            for cut in dict.fromkeys((prompt[:length], prompt[-length:])):
                yield from _with_request(scenario, index, prompt_token_ids=cut)


def plainer_requests(scenario: Scenario) -> Iterator[Scenario]:
    """Takes each field of a request, and of its sampling parameters, to its default, or lower."""
    plain = SamplingParams()
    for index, entry in enumerate(scenario.requests):
        request = entry.request
        params = request.sampling_params
        for field in ("beam_search", "cache_salt", "adapter_id"):
            yield from _with_request(scenario, index, **{field: None})
        yield from _with_request(scenario, index, media=())
        yield from _with_request(scenario, index, bad_words_token_ids=(), priority=0)
        for arrival in smaller_numbers(int(request.arrival_s), 0):
            yield from _with_request(scenario, index, arrival_s=float(arrival))
        for priority in smaller_numbers(abs(request.priority), 0):
            yield from _with_request(scenario, index, priority=priority)
        changes: list[dict[str, Any]] = [
            {field: getattr(plain, field)}
            for field in SamplingParams.__struct_fields__
            if field != "max_tokens" and getattr(params, field) != getattr(plain, field)
        ]
        changes += [{"n": n, "best_of": None} for n in smaller_numbers(params.num_samples, 1)]
        most = params.max_tokens or scenario.scheduler.max_model_len
        changes += [{"max_tokens": n, "min_tokens": 0} for n in smaller_numbers(most, 1)]
        for change in changes:
            try:
                lower = _replace(params, **change)
            except ValueError:
                continue
            yield from _with_request(scenario, index, sampling_params=lower)


def _with_request(scenario: Scenario, index: int, **changes: Any) -> Iterator[Scenario]:
    """The scenario with one request changed, its prompt given as tokens."""
    entry = scenario.requests[index]
    filled = scenario.requests_by_id()[entry.request.request_id]
    changes.setdefault("prompt_token_ids", filled.prompt_token_ids)
    try:
        changed = ScenarioRequest(request=_replace(entry.request, **changes))
    except ValueError:
        return
    requests = (*scenario.requests[:index], changed, *scenario.requests[index + 1 :])
    yield from _variants(scenario, [{"requests": requests}])


def shorter_scripts(scenario: Scenario) -> Iterator[Scenario]:
    """Drops scripted outputs, then their last tokens."""
    yield from _variants(scenario, ({"outputs": kept} for kept in without_some(scenario.outputs)))
    for index, output in enumerate(scenario.outputs):
        options = [
            _replace(output, token_ids=output.token_ids[:length])
            for length in smaller_numbers(len(output.token_ids), 0)
        ]
        options += [_replace(output, then_fails=False)] if output.then_fails else []
        for option in options:
            outputs = (*scenario.outputs[:index], option, *scenario.outputs[index + 1 :])
            yield from _variants(scenario, [{"outputs": outputs}])


def plainer_configuration(scenario: Scenario) -> Iterator[Scenario]:
    """Switches features off one by one."""
    cache: list[dict[str, Any]] = [
        {"enable_partial_hits": False},
        {"enable_prefix_caching": False, "enable_partial_hits": False},
        {"num_host_blocks": 0},
        {"watermark_blocks": 0},
        {"sliding_window": 0},
        {"kv_cache_dtype": "auto"},
        {"weights_version": ""},
    ]
    limits: list[dict[str, Any]] = [
        {"async_scheduling": False},
        {"wait_for_prefix": False},
        {"policy": "fcfs"},
        {"preemption_mode": "recompute"},
        {"num_lookahead_slots": 0},
        {"long_prefill_token_threshold": 0},
        {"enable_chunked_prefill": True},
    ]
    yield from _configured(scenario, "cache", cache)
    yield from _configured(scenario, "scheduler", limits)
    yield from _variants(scenario, [{"eos_token_ids": ()}, {"note": ""}])


def smaller_configuration(scenario: Scenario) -> Iterator[Scenario]:
    """Shrinks the pools and the limits, the block size last."""
    least = {"num_blocks": 2, "num_host_blocks": 0, "watermark_blocks": 0, "sliding_window": 0}
    yield from _configured(scenario, "cache", _lower(scenario.cache, least))
    limits = {
        "max_model_len": 2,
        "max_num_seqs": 1,
        "max_num_batched_tokens": 1,
        "num_lookahead_slots": 0,
        "long_prefill_token_threshold": 0,
    }
    yield from _configured(scenario, "scheduler", _lower(scenario.scheduler, limits))
    both = [
        {"max_num_seqs": n, "max_num_batched_tokens": max(n, scenario.scheduler.max_model_len)}
        for n in smaller_numbers(scenario.scheduler.max_num_seqs, 1)
    ]
    yield from _configured(scenario, "scheduler", both)
    yield from _configured(scenario, "cache", _lower(scenario.cache, {"block_size": 1}))


def _lower(config: msgspec.Struct, least: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {knob: value}
        for knob, lowest in least.items()
        for value in smaller_numbers(getattr(config, knob), lowest)
    ]


def _configured(
    scenario: Scenario, part: str, changes: Iterable[dict[str, Any]]
) -> Iterator[Scenario]:
    for change in changes:
        try:
            config = _replace(getattr(scenario, part), **change)
        except ValueError:
            continue
        yield from _variants(scenario, [{part: config}])


def plainer_tokens(scenario: Scenario) -> Iterator[Scenario]:
    """Renames tokens to 0, 1, ... in order of appearance; then single ones to 0."""
    filled = scenario.requests_by_id()
    prompts = [filled[entry.request.request_id].prompt_token_ids for entry in scenario.requests]
    if not scenario.eos_token_ids and not scenario.outputs:
        names: dict[int, int] = {}
        for token in (token for prompt in prompts for token in prompt):
            names.setdefault(token, len(names))
        entries = tuple(
            ScenarioRequest(
                request=_replace(entry.request, prompt_token_ids=tuple(names[t] for t in prompt))
            )
            for entry, prompt in zip(scenario.requests, prompts, strict=True)
        )
        yield from _variants(scenario, [{"requests": entries}])
    yield from _variants(
        scenario, ({"vocab_size": size} for size in smaller_numbers(scenario.vocab_size, 1))
    )
    for index, prompt in enumerate(prompts):
        yield from _with_request(scenario, index, prompt_token_ids=(0,) * len(prompt))
        for place, token in enumerate(prompt):
            for lower in smaller_numbers(token, 0):
                changed = (*prompt[:place], lower, *prompt[place + 1 :])
                yield from _with_request(scenario, index, prompt_token_ids=changed)


def shorter_names(scenario: Scenario) -> Iterator[Scenario]:
    """Calls the requests a, b, c, ... in the order of their ids, which breaks no tie anew."""
    ids = sorted(entry.request.request_id for entry in scenario.requests)
    if len(ids) > 26:
        return
    names = {old: chr(ord("a") + place) for place, old in enumerate(ids)}

    def renamed(event: AnyEvent) -> AnyEvent:
        if isinstance(event, _NAMING) and event.request_id in names:
            return _replace(event, request_id=names[event.request_id])
        return event

    def request(entry: ScenarioRequest) -> ScenarioRequest:
        own: Request = _replace(entry.request, request_id=names[entry.request.request_id])
        return _replace(entry, request=own)

    outputs = []
    for output in scenario.outputs:
        name, _, sample = output.seq_id.rpartition("/")
        outputs.append(_replace(output, seq_id=sequence_id(names.get(name, name), int(sample))))
    change = {
        "requests": tuple(request(entry) for entry in scenario.requests),
        "events": tuple(renamed(event) for event in scenario.events),
        "failing_requests": tuple(names.get(name, name) for name in scenario.failing_requests),
        "outputs": tuple(outputs),
    }
    yield from _variants(scenario, [change])


PASSES: tuple[Pass, ...] = (
    fewer_requests,
    fewer_events,
    shorter_prompts,
    plainer_requests,
    shorter_scripts,
    plainer_configuration,
    earlier_events,
    smaller_configuration,
    plainer_tokens,
    shorter_names,
)
"""What takes most away comes first."""
