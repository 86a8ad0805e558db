"""How one field of a request's parameters is checked, and the words of its refusal."""

import math
import operator
from collections.abc import Mapping
from typing import Any, NoReturn

from pagetwin.engine.errors import RequestError

MAX_LOGIT_BIAS = 100.0


def refuse(field: str, value: object, limit: str, remedy: str) -> NoReturn:
    """Raises RequestError in the one form that all refusals have."""
    raise RequestError(f"{field}={value!r} {limit}; {remedy}")


def checked_real(field: str, value: Any, bounds: tuple[float, float], ends: str = "[]") -> float:
    """The value as a float within `bounds`; `ends` says which of the two belong to the range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(field, value, "is not a number", f"give one in {_range(bounds, ends)}")
    low, high = bounds
    above = low < value if ends[0] == "(" else low <= value
    below = value < high if ends[1] == ")" else value <= high
    if not (math.isfinite(value) and above and below):
        refuse(field, value, f"is outside {_range(bounds, ends)}", "give a finite number inside")
    return float(value)


def _range(bounds: tuple[float, float], ends: str) -> str:
    return f"{ends[0]}{bounds[0]:g}, {bounds[1]:g}{ends[1]}"


def checked_integer(
    field: str, value: Any, bounds: tuple[int, int | None], remedy: str = "give a whole number"
) -> int:
    """The value as an int within `bounds`, both ends included; None is no upper end."""
    integer = _as_integer(value)
    if integer is None:
        refuse(field, value, "is not a whole number", remedy)
    low, high = bounds
    if integer < low:
        refuse(field, integer, f"is below {low}", remedy)
    if high is not None and integer > high:
        refuse(field, integer, f"is above {high}", remedy)
    return integer


def _as_integer(value: Any) -> int | None:
    """Any exact integer type (NumPy's too), but no bool and no float."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_flag(field: str, value: Any) -> None:
    if not isinstance(value, bool):
        refuse(field, value, "is neither True nor False", "give one of them")


def checked_strings(field: str, values: Any) -> tuple[str, ...]:
    """A list or tuple of strings, none of them empty."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        refuse(field, values, "is not a list of strings", "give a list such as ['a', 'b']")
    if "" in values:
        refuse(field, values, "has an empty string", "every text contains it; remove it")
    return tuple(values)


def checked_ids(field: str, values: Any) -> tuple[int, ...]:
    """A list or tuple of token ids; whether the vocabulary has them is checked later."""
    if not isinstance(values, list | tuple):
        refuse(field, values, "is not a list of token ids", "give a list such as [1, 2]")
    remedy = "token ids are whole numbers from 0"
    return tuple(
        checked_integer(f"{field}[{i}]", v, (0, None), remedy) for i, v in enumerate(values)
    )


def checked_bias(field: str, values: Any) -> dict[int, float]:
    """Biases by token id, clamped; ids may be strings of digits, as JSON has them."""
    if not isinstance(values, Mapping):
        refuse(field, values, "is not a mapping of token id to bias", "give one such as {42: -100}")
    biases: dict[int, float] = {}
    for key, value in values.items():
        digits = isinstance(key, str) and key.isascii() and key.isdigit()
        remedy = "keys are token ids: whole numbers from 0"
        token = checked_integer(f"{field} key", int(key) if digits else key, (0, None), remedy)
        if token in biases:
            refuse(f"{field} key", key, "stands twice", "give each token one bias")
        bias = checked_real(f"{field}[{token}]", value, (-math.inf, math.inf), "()")
        biases[token] = min(max(bias, -MAX_LOGIT_BIAS), MAX_LOGIT_BIAS)
    return biases
