"""Architectures are found by name, without importing what is not asked for."""

import subprocess
import sys

import pytest

from pagetwin.engine.errors import ModelError
from pagetwin.engine.models import registry


def test_importing_the_registry_imports_no_torch() -> None:
    code = (
        "import sys, pagetwin.engine.models.registry as r; r.supported_architectures(); "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("architecture", registry.supported_architectures())
def test_every_supported_architecture_has_a_class(architecture: str) -> None:
    assert registry.resolve_architecture(architecture).__name__ == "Llama"


def test_an_unknown_architecture_lists_the_known_and_says_how_to_add_one() -> None:
    with pytest.raises(ModelError) as raised:
        registry.resolve_architecture("GPT5ForCausalLM")
    message = str(raised.value)
    assert all(name in message for name in registry.supported_architectures())
    assert "register_model('GPT5ForCausalLM', 'module:Class')" in message
    assert "\n" not in message


def test_a_registered_class_is_imported_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_targets", dict(registry._targets))
    registry.register_model("MyForCausalLM", "pagetwin.engine.models.llama:Llama")
    assert "MyForCausalLM" in registry.supported_architectures()
    assert registry.resolve_architecture("MyForCausalLM").__name__ == "Llama"
    registry.register_model("MyForCausalLM", "no_such_package.models:Mine")
    with pytest.raises(ModelError, match=r"models:Mine', which cannot be imported: No module"):
        registry.resolve_architecture("MyForCausalLM")


@pytest.mark.parametrize("target", ["", "module", "module:", ":Class", "module:not a name"])
def test_a_malformed_target_is_refused(target: str) -> None:
    with pytest.raises(ModelError, match=r"not of the form 'package.module:Class'"):
        registry.register_model("MyForCausalLM", target)
