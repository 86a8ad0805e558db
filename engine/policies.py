"""In which order sequences are served: a key per request, smaller first (docs/policy.md P1.4).

A custom policy is a function from a `Request` to a tuple of numbers or strings. It is named in
`SchedulerConfig.policy` by the dotted path `package.module:function`, or by the name under which
an installed package registers it in the entry point group `pagetwin.policies`. Engine and
simulator both run it unchanged, so it must depend on the request alone.
"""

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from pagetwin.engine.errors import ConfigError
from pagetwin.engine.request import Request

ENTRY_POINT_GROUP = "pagetwin.policies"

PolicyKey = Callable[[Request], tuple[Any, ...]]


def fcfs_key(request: Request) -> tuple[Any, ...]:
    """First come, first served: arrival and id alone decide."""
    return ()


def priority_key(request: Request) -> tuple[Any, ...]:
    """Lower priority values first."""
    return (request.priority,)


_PLAIN = Request(request_id="plain", prompt_token_ids=(0,))
BUILT_IN: dict[str, PolicyKey] = {"fcfs": fcfs_key, "priority": priority_key}


def resolve_policy(name: str) -> PolicyKey:
    """The key function of a policy; ConfigError names the known ones if there is no such policy."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" in name:
        return _load(name)
    registered = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in registered:
        known = ", ".join(sorted([*BUILT_IN, *registered]))
        raise ConfigError(
            f"scheduler.policy={name!r} is not known; use one of {known}, "
            "or give a function as package.module:function"
        )
    return _load(registered[name].value)


def order_key(policy: PolicyKey, request: Request) -> tuple[Any, ...]:
    """The policy's key of the request, with arrival and id to break ties."""
    return (*policy(request), request.arrival_s, request.request_id)


def _load(path: str) -> PolicyKey:
    module_name, _, attribute = path.partition(":")
    try:
        policy = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"scheduler.policy={path!r} cannot be loaded ({error}); "
            "check the path package.module:function and that the package is installed"
        ) from None
    if not callable(policy):
        raise ConfigError(
            f"scheduler.policy={path!r} is {policy!r}, not a function; "
            "give a function from a Request to a tuple"
        )
    loaded: PolicyKey = policy
    _try(path, loaded)
    return loaded


def _try(path: str, policy: PolicyKey) -> None:
    """Whether it is a policy at all is known at once, not in the middle of a run."""
    try:
        key: object = policy(_PLAIN)
    except Exception as error:
        raise ConfigError(
            f"scheduler.policy={path!r} fails on a plain request ({type(error).__name__}: "
            f"{error}); give a function from a Request to a tuple"
        ) from error
    if not isinstance(key, tuple):
        raise ConfigError(
            f"scheduler.policy={path!r} gives {key!r}, not a tuple; of one value, write (value,)"
        )
