"""Decides which class runs which architecture; imports no model before one is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pagetwin.engine.errors import ModelError

if TYPE_CHECKING:
    from pagetwin.engine.models.spec import Model

_LLAMA = "pagetwin.engine.models.llama:Llama"

_targets = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
}


def register_model(architecture: str, target: str) -> None:
    """Serve `architecture`, as config.json names it, with the class at "package.module:Class".

    The class follows `pagetwin.engine.models.spec.Model`. A later registration replaces an
    earlier one.
    """
    module, _, name = target.partition(":")
    if not (architecture and module and name.isidentifier()):
        raise ModelError(
            f"register_model({architecture!r}, {target!r}): the target is not of the form "
            "'package.module:Class'"
        )
    _targets[architecture] = target


def supported_architectures() -> tuple[str, ...]:
    return tuple(sorted(_targets))


def resolve_architecture(architecture: str) -> "type[Model]":
    """The class for an architecture; ModelError if there is none or it cannot be imported."""
    target = _targets.get(architecture)
    if target is None:
        raise ModelError(
            f"architecture {architecture!r} is not supported; supported are "
            f"{', '.join(supported_architectures())}; to add one, write a class that follows "
            "pagetwin.engine.models.spec.Model and call "
            f"pagetwin.engine.models.registry.register_model({architecture!r}, 'module:Class')"
        )
    module, _, name = target.partition(":")
    try:
        model_class: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"architecture {architecture!r} is registered as {target!r}, which cannot be "
            f"imported: {error}; correct the call of register_model"
        ) from error
    return model_class  # type: ignore[no-any-return]
