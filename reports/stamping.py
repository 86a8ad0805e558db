"""Gives a result the commit that it was measured at, where the sources prove it."""

from pathlib import Path

import msgspec

from pagetwin.conformance.environment import commit, sources_sha256
from pagetwin.engine.errors import ConfigError, TraceError


def stamped(path: Path) -> bytes:
    """The result's JSON with this repository's commit.

    Raises TraceError if the file is no result, ConfigError unless the sources here are committed
    and those that the result was measured with.
    """
    content = path.read_bytes()
    try:
        result = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        measured_with = msgspec.json.decode(result["sources_sha256"], type=str)
    except (msgspec.DecodeError, KeyError):
        raise TraceError(f"{path}: not a result of pagetwin bench") from None
    here = commit()
    if here is None or here.dirty:
        raise ConfigError("the sources here are not committed; commit them, then stamp")
    if measured_with != sources_sha256():
        raise ConfigError(
            f"{path} was measured with other sources than those of commit {here.id[:10]}; check "
            "out the commit that it was measured at, or measure again"
        )
    result["commit"] = msgspec.Raw(msgspec.json.encode(here))
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
