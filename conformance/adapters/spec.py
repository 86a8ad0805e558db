"""Engine specs: the one string that names an engine, and the adapter that it stands for."""

import importlib
import json
import urllib.parse
from typing import Any, NamedTuple

from pagetwin.conformance.adapters.protocol import Adapter, AdapterError


class Kind(NamedTuple):
    """One kind of engine. Its module is imported when a spec asks for it."""

    module: str
    form: str
    what: str


_HERE = "pagetwin.conformance.adapters"
KINDS: dict[str, Kind] = {
    "fingerprint": Kind(
        f"{_HERE}.fingerprint", "fingerprint:", "our scheduler over an executor without a model"
    ),
    "sim": Kind(f"{_HERE}.simulated", "sim:", "the twin"),
    "pagetwin": Kind(
        f"{_HERE}.own",
        "pagetwin:MODEL?{json}",
        "our engine; MODEL is a name, a folder, a .gguf file, or `random`",
    ),
    "hfcb": Kind(
        f"{_HERE}.transformers_batching",
        "hfcb:PATH?{json}",
        "transformers' continuous batching",
    ),
    "vllm": Kind(f"{_HERE}.vllm", "vllm:PATH?{json}", "vLLM, here or in its own environment"),
    "http": Kind(f"{_HERE}.http", "http://HOST:PORT/v1?model=NAME", "any OpenAI-compatible server"),
    "https": Kind(f"{_HERE}.http", "https://HOST/v1?model=NAME", "the same over TLS"),
    "py": Kind(
        f"{_HERE}.python", "py:MODULE:FACTORY?{json}", "an adapter of your own, in this process"
    ),
    "cmd": Kind(
        f"{_HERE}.command",
        "cmd:COMMAND LINE",
        "an adapter of your own, as a program that talks lines of JSON",
    ),
}
"""By the word before the colon. A new kind is a line here."""


class EngineSpec(NamedTuple):
    """A spec taken apart."""

    text: str
    kind: str
    target: str
    options: dict[str, Any]


def parse_spec(text: str) -> EngineSpec:
    """Takes `kind:target?options` apart; options are a JSON object or NAME=VALUE&NAME=VALUE.

    An http(s) URL keeps its scheme in the target. A command line is taken whole. Raises
    AdapterError, naming the kinds there are, if there is no such kind.
    """
    kind, colon, rest = text.strip().partition(":")
    if not colon or kind not in KINDS:
        forms = "; ".join(f"{entry.form} ({entry.what})" for entry in KINDS.values())
        what = f"engine {text!r} has no kind" if not colon else f"engine kind {kind!r} is unknown"
        raise AdapterError(f"{what}; an engine is one of: {forms}")
    if kind == "cmd":
        return EngineSpec(text, kind, rest, {})
    target, _, query = rest.partition("?")
    if kind in ("http", "https"):
        target = f"{kind}:{target}"
    return EngineSpec(text, kind, target, _options(text, query))


def make_adapter(text: str) -> Adapter:
    """The adapter that a spec names. Raises AdapterError if it does not name one."""
    spec = parse_spec(text)
    module = importlib.import_module(KINDS[spec.kind].module)
    adapter: Adapter = module.make(spec.target, spec.options)
    return adapter


def _options(text: str, query: str) -> dict[str, Any]:
    if not query.startswith("{"):
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)
        if query and len(pairs) != query.count("&") + 1:
            raise AdapterError(
                f"engine {text!r}: cannot read the options {query!r}; write them as a JSON object "
                'or as NAME=VALUE, as in ?{"dtype": "float32"} or ?dtype=float32'
            )
        return dict(pairs)
    try:
        options = json.loads(query)
    except json.JSONDecodeError as error:
        raise AdapterError(
            f"engine {text!r}: the options are not JSON ({error}); quote the whole spec for the "
            "shell"
        ) from None
    assert isinstance(options, dict)
    return options
