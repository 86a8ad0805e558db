"""Waivers: known failures that somebody has signed for, with a reason and a last day."""

import datetime
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from pagetwin.conformance.properties import CATALOGUE
from pagetwin.conformance.suite.evidence import PropertyResult, Status
from pagetwin.engine.errors import ConfigError


class Waiver(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Takes the sting out of one property's failure until the end of `expires`."""

    property: str
    reason: str
    expires: datetime.date


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    waiver: tuple[Waiver, ...] = ()


WAIVABLE = (Status.FAIL, Status.VACUOUS, Status.UNDECIDED)


def read_waivers(path: Path) -> dict[str, Waiver]:
    """The waivers of a TOML file, an array of tables `waiver`, by property id.

    Raises ConfigError, naming the file, if it does not hold waivers of known properties, each
    with a reason.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        waivers = msgspec.convert(data, _File).waiver
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not a file of waivers ({error}); each is a table [[waiver]] with property, "
            "reason and expires = YYYY-MM-DD"
        ) from None
    for waiver in waivers:
        if waiver.property not in CATALOGUE:
            raise ConfigError(f"{path}: there is no property {waiver.property!r} to waive")
        if not waiver.reason.strip():
            raise ConfigError(f"{path}: the waiver of {waiver.property!r} gives no reason")
    return {waiver.property: waiver for waiver in waivers}


def waive(
    result: PropertyResult, waivers: dict[str, Waiver], today: datetime.date
) -> PropertyResult:
    """The result as a waiver changes it: what it would have been stays in the reason."""
    waiver = waivers.get(result.property_id)
    if waiver is None or result.status not in WAIVABLE:
        return result
    if today > waiver.expires:
        reason = f"{result.reason} (its waiver expired on {waiver.expires})"
        return msgspec.structs.replace(result, reason=reason)
    reason = f"{waiver.reason} (until {waiver.expires}; would be {result.status}: {result.reason})"
    return msgspec.structs.replace(result, status=Status.WAIVED, reason=reason)
