"""Which outputs a request accepts: the language they must belong to, and when they loop."""

from typing import Any

import msgspec

from pagetwin.engine.sampling_checks import check_flag, checked_integer, checked_strings, refuse

MAX_SCHEMA_DEPTH = 64


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The language that the output must belong to: exactly one field is given."""

    json: str | dict[str, Any] | None = None
    """A JSON schema, as text or as an object."""
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    """A context-free grammar in EBNF."""
    json_object: bool = False
    """Any JSON object."""
    structural_tag: str | None = None

    def __post_init__(self) -> None:
        if self.choice is not None:
            choices = checked_strings("structured_outputs.choice", self.choice)
            msgspec.structs.force_setattr(self, "choice", choices)
        check_flag("structured_outputs.json_object", self.json_object)
        given = [f for f in self.__struct_fields__ if getattr(self, f) not in (None, False)]
        if len(given) != 1:
            refuse("structured_outputs", given, "does not give exactly one field", "give one")
        value = getattr(self, given[0])
        field = f"structured_outputs.{given[0]}"
        if not value:
            refuse(field, value, "is empty", "say what the output must match")
        if isinstance(value, dict) and _is_deeper(value, MAX_SCHEMA_DEPTH):
            limit = f"is nested deeper than {MAX_SCHEMA_DEPTH} levels"
            refuse(field, list(value), limit, "flatten the schema with $defs")


def _is_deeper(value: object, limit: int) -> bool:
    """Whether dicts and lists nest in more than `limit` levels."""
    if not isinstance(value, dict | list):
        return False
    children = value.values() if isinstance(value, dict) else value
    return limit == 0 or any(_is_deeper(child, limit - 1) for child in children)


class RepetitionDetection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stop when the output ends in `min_count` copies of one pattern; sizes are in tokens."""

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int = 2

    def __post_init__(self) -> None:
        for field, bounds, remedy in (
            ("max_pattern_size", (1, None), "give the longest pattern to look for"),
            ("min_pattern_size", (1, self.max_pattern_size), "keep it within max_pattern_size"),
            ("min_count", (2, None), "a single copy repeats nothing; use 2"),
        ):
            name = f"repetition_detection.{field}"
            value = checked_integer(name, getattr(self, field), bounds, remedy)
            msgspec.structs.force_setattr(self, field, value)
