"""Options of an engine spec, checked: a misspelt one is an error, not a default."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from pagetwin.conformance.adapters.protocol import AdapterError

Options = TypeVar("Options", bound=msgspec.Struct)


def refuse_unknown(kind: str, target: str, options: Mapping[str, Any]) -> None:
    """For engines that take neither a target nor options."""
    if target or options:
        given = target or ", ".join(options)
        raise AdapterError(f"{kind!r} takes nothing behind it, but {given!r} was given; drop it")


def read_options(kind: str, options: Mapping[str, Any], form: type[Options]) -> Options:
    """The options as a struct. Raises AdapterError, naming those there are, if they do not fit."""
    names = [field.name for field in msgspec.structs.fields(form)]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise AdapterError(
            f"option {unknown[0]!r} of {kind!r} is unknown; there are {', '.join(names)}"
        )
    try:
        # Options written as NAME=VALUE are strings.
        return msgspec.convert(dict(options), form, strict=False)
    except msgspec.ValidationError as error:
        raise AdapterError(f"options of {kind!r}: {error}") from None
    except ValueError as error:
        raise AdapterError(f"options of {kind!r}: {error}") from None
