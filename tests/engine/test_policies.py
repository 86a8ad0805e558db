"""Names, dotted paths and orders of scheduling policies."""

import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from pagetwin.engine.config import CacheConfig, SchedulerConfig
from pagetwin.engine.errors import ConfigError
from pagetwin.engine.policies import order_key, resolve_policy
from pagetwin.engine.request import Request
from pagetwin.engine.sampling_params import SamplingParams
from pagetwin.engine.scheduler import Scheduler
from pagetwin.engine.step import StepResult


def _request(name: str, *, prompt: int = 3, arrival_s: float = 0.0, priority: int = 0) -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=(1,) * prompt,
        arrival_s=arrival_s,
        priority=priority,
        sampling_params=SamplingParams(max_tokens=2),
    )


def longest_prompt_first(request: Request) -> tuple[Any, ...]:
    """A custom policy, as a user would write one."""
    return (-request.num_prompt_tokens,)


not_a_function = 3


def _order_of_admission(policy: str, requests: list[Request]) -> list[str]:
    scheduler = Scheduler(
        CacheConfig(num_blocks=50),
        SchedulerConfig(max_model_len=50, max_num_seqs=1, policy=policy),
    )
    for request in requests:
        scheduler.add_request(request)
    order = []
    while (plan := scheduler.schedule()) is not None:
        order += [new.request_id for new in plan.introduced]
        sampled = {entry.seq_id: 1 for entry in plan.scheduled}
        scheduler.update(plan, StepResult(step=plan.step, sampled=sampled))
    return order


REQUESTS = [
    _request("a", prompt=3, arrival_s=2.0, priority=1),
    _request("b", prompt=9, arrival_s=3.0, priority=2),
    _request("c", prompt=5, arrival_s=1.0, priority=1),
    _request("d", prompt=5, arrival_s=1.0, priority=0),
]


def test_fcfs_goes_by_arrival_then_id() -> None:
    assert _order_of_admission("fcfs", REQUESTS) == ["c", "d", "a", "b"]


def test_priority_goes_by_priority_then_arrival() -> None:
    assert _order_of_admission("priority", REQUESTS) == ["d", "c", "a", "b"]


def test_a_custom_policy_is_found_by_its_dotted_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "policies_of_a_user", sys.modules[__name__])
    path = "policies_of_a_user:longest_prompt_first"
    assert _order_of_admission(path, REQUESTS) == ["b", "c", "d", "a"]


def test_a_custom_policy_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("longest", "policies_of_a_user:longest_prompt_first", "pagetwin.policies")
    monkeypatch.setitem(sys.modules, "policies_of_a_user", sys.modules[__name__])
    monkeypatch.setattr(
        "pagetwin.engine.policies.entry_points",
        lambda group: (point,) if group == "pagetwin.policies" else (),
    )
    assert _order_of_admission("longest", REQUESTS) == ["b", "c", "d", "a"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sjff", r"scheduler\.policy='sjff' is not known; use one of fcfs, priority, or give"),
        ("no_such_module:key", r"cannot be loaded \(No module named 'no_such_module'\)"),
        ("math:no_such_key", r"cannot be loaded .*; check the path package\.module:function and"),
        ("math:pi:e", r"cannot be loaded \(module 'math' has no attribute 'pi:e'\)"),
        ("os:getcwd", r"fails on a plain request \(TypeError: .*; give a function from a Request"),
        ("builtins:id", r"gives \d+, not a tuple; of one value, write \(value,\)"),
        ("math:pi", r"is 3\.14.*, not a function; give a function from a Request"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_policy(name)


def test_every_order_key_ends_in_the_unique_id() -> None:
    for policy in ("fcfs", "priority"):
        assert order_key(resolve_policy(policy), REQUESTS[0])[-1] == "a"
