"""Adapters tested: order and completeness of what they report, and every claim put to the proof."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from pagetwin.conformance.adapters.protocol import Adapter, SessionConfig, SessionRefused
from pagetwin.conformance.capability import Flag
from pagetwin.conformance.checkers.client import check_client
from pagetwin.conformance.observation import Opened
from pagetwin.conformance.suite.adapter_probes import PROBES, Bench


class Finding(NamedTuple):
    """One check of an adapter. `broken` means that nothing it shows can be relied on."""

    status: Literal["ok", "broken", "not probed"]
    what: str
    detail: str = ""


def check_adapter(adapter: Adapter) -> Iterator[Finding]:
    """Yields each check's finding. Raises AdapterError where the engine breaks off."""
    bench = Bench(adapter)
    yield _description(bench)
    yield from _session(bench)
    if not bench.capabilities.has(Flag.TOKEN_PROMPT):
        yield Finding("not probed", "claims", "probes are prompts of token ids, which it lacks")
        return
    for flag in Flag:
        support = bench.capabilities.of_flag(flag)
        if support.status == "no":
            continue
        if flag not in PROBES:
            yield Finding("not probed", flag.value, "no probe; its experiments will show it")
            continue
        try:
            problem = PROBES[flag](bench)
        except SessionRefused as error:
            problem = f"no session that would show it can be opened: {error}"
        yield Finding("broken" if problem else "ok", flag.value, problem)


def _description(bench: Bench) -> Finding:
    again = bench.adapter.describe(), bench.adapter.capabilities()
    if again != (bench.info, bench.capabilities):
        return Finding("broken", "describe and capabilities", "two calls give two answers")
    if not bench.info.name:
        return Finding("broken", "describe and capabilities", "the engine has no name")
    return Finding("ok", "describe and capabilities", f"level {bench.capabilities.level.label}")


def _session(bench: Bench) -> Iterator[Finding]:
    """Observations grow at their end, start with `opened`, and tell every request's end."""
    session = bench.adapter.open(SessionConfig())
    try:
        start = list(session.observations())
        opened = len(start) == 1 and isinstance(start[0], Opened)
        yield Finding("ok" if opened else "broken", "a session starts with `opened`, alone")
        requests = [bench.request(first=i, max_tokens=1 + i) for i in range(4)]
        bench.run(*requests[:2], session=session)
        middle = list(session.observations())
        bench.run(*requests[2:], session=session)
        whole = list(session.observations())
        grows = whole[: len(middle)] == middle and middle[:1] == start
        yield Finding("ok" if grows else "broken", "observations only grow, at their end")
    finally:
        session.close()
    session.close()
    yield Finding("ok", "a session may be closed twice")
    known = {request.request_id: request for request in requests}
    broken = check_client(whole[1:], known, max_model_len=bench.info.max_model_len)
    detail = str(broken[0]) if broken else ""
    yield Finding("broken" if broken else "ok", "every request is reported to its end", detail)
    yield _repeats(bench)


def _repeats(bench: Bench) -> Finding:
    """The adapter's own books must not depend on the run: kinds of events, in order."""
    runs = []
    for _ in range(2):
        request = bench.request(first=3)
        runs.append([type(one).__name__ for one in bench.run(request)])
    what = "the same request gives the same kinds of events, in order"
    return Finding("ok" if runs[0] == runs[1] else "broken", what)
