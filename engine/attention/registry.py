"""Which attention backend serves a model: by name, or the first that can."""

from importlib import import_module
from importlib.metadata import entry_points

from pagetwin.engine.attention.backend import AttentionBackend, AttentionSpec
from pagetwin.engine.errors import ConfigError

AUTO = "auto"
ENTRY_POINT_GROUP = "pagetwin.attention_backends"

_BACKENDS = {
    "triton": "pagetwin.engine.attention.triton_backend:TritonBackend",
    "torch": "pagetwin.engine.attention.torch_backend:TorchBackend",
    "flash_attn": "pagetwin.engine.attention.flash_attn_backend:FlashAttnBackend",
    "flashinfer": "pagetwin.engine.attention.flashinfer_backend:FlashInferBackend",
}
"""In the order in which "auto" tries them. The classes are imported when they are tried."""


def register_backend(name: str, path: str) -> None:
    """Add a backend, or replace the one of that name; `path` is "module:Class".

    "auto" tries a new one after those before it. A package can also declare its backends as
    entry points of the group pagetwin.attention_backends.
    """
    if name == AUTO:
        raise ConfigError(f"attention backend {path}: the name {AUTO!r} is taken; use another")
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"attention backend {name!r}: {path!r} is not of the form module:Class")
    _BACKENDS[name] = path


def known_backends() -> dict[str, str]:
    """Path by name: the registered ones, then the entry points of installed packages."""
    installed = {
        point.name: point.value
        for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    }
    return _BACKENDS | {name: path for name, path in installed.items() if name not in _BACKENDS}


def resolve_backend(name: str, spec: AttentionSpec) -> AttentionBackend:
    """The backend of that name, or with "auto" the first that does not reject `spec`.

    Raises ConfigError if the name is unknown, or if the backend cannot serve the model.
    """
    known = known_backends()
    if name != AUTO and name not in known:
        raise ConfigError(
            f"attention_backend={name!r} is unknown; use {AUTO!r} or one of {', '.join(known)}"
        )
    reasons = []
    for candidate in known if name == AUTO else [name]:
        backend, reason = _load(candidate, known[candidate])
        if backend is not None:
            reason = _mismatch(spec) or backend.rejection(spec)
            if reason is None:
                return backend(spec)
        reasons.append(f"{candidate!r} cannot serve the model because {reason}")
    remedy = "choose another model or dtype" if name == AUTO else f"use {AUTO!r}"
    raise ConfigError(f"attention_backend={name!r}: {'; '.join(reasons)}; {remedy}")


def _load(name: str, path: str) -> tuple[type[AttentionBackend] | None, str | None]:
    """The class, or why there is none."""
    module, _, attribute = path.partition(":")
    try:
        backend = getattr(import_module(module), attribute)
    except ImportError as error:
        return None, f"{module} cannot be imported ({error})"
    except AttributeError:
        raise ConfigError(f"attention backend {name!r}: {module} has no {attribute!r}") from None
    if not (isinstance(backend, type) and issubclass(backend, AttentionBackend)):
        raise ConfigError(f"attention backend {name!r}: {path} is no AttentionBackend")
    return backend, None


def _mismatch(spec: AttentionSpec) -> str | None:
    """What no backend can serve."""
    if spec.num_heads % spec.num_kv_heads:
        return f"num_heads={spec.num_heads} is no multiple of num_kv_heads={spec.num_kv_heads}"
    return None
