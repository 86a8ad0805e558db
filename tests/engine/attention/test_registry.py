"""Choosing an attention backend: by name, by trying, and what is said when it fails."""

from dataclasses import replace

import pytest
import torch

from pagetwin.engine.attention import registry
from pagetwin.engine.attention.backend import AttentionSpec
from pagetwin.engine.attention.registry import register_backend, resolve_backend
from pagetwin.engine.attention.torch_backend import TorchBackend
from pagetwin.engine.errors import ConfigError

SPEC = AttentionSpec(head_size=64, num_heads=9, num_kv_heads=3, dtype=torch.float32, block_size=16)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))


class Picky(TorchBackend):
    """Serves head size 64 alone."""

    @classmethod
    def rejection(cls, spec: AttentionSpec) -> str | None:
        return None if spec.head_size == 64 else f"it has no head size {spec.head_size}"


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> str:
    """A path under which Picky can be imported."""
    monkeypatch.setattr(registry, "PickyForTest", Picky, raising=False)
    return "pagetwin.engine.attention.registry:PickyForTest"


def test_auto_takes_the_torch_backend_on_a_cpu() -> None:
    backend = resolve_backend("auto", SPEC)
    assert type(backend) is TorchBackend
    assert backend.spec == SPEC


def test_a_registered_backend_is_found_by_name(picky: str) -> None:
    register_backend("picky", picky)
    assert type(resolve_backend("picky", SPEC)) is Picky


def test_a_registered_name_can_be_replaced(picky: str) -> None:
    register_backend("torch", picky)
    assert type(resolve_backend("auto", SPEC)) is Picky


def test_a_backend_that_cannot_serve_says_why(picky: str) -> None:
    register_backend("picky", picky)
    with pytest.raises(ConfigError, match=r"'picky' cannot serve .* it has no head size 80"):
        resolve_backend("picky", replace(SPEC, head_size=80))


def test_auto_gives_the_reason_of_each_backend() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_backend("auto", replace(SPEC, needs_alibi=True))
    assert "'triton' cannot serve the model because a CPU" in str(caught.value)
    assert "'torch' cannot serve the model because it has no ALiBi" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"needs_sinks": True}, "no attention sinks"),
        ({"dtype": torch.float8_e4m3fn}, "float8_e4m3fn"),
        ({"dtype": torch.int8}, "int8"),
        ({"num_heads": 10}, "num_heads=10 is no multiple of num_kv_heads=3"),
    ],
)
def test_the_torch_backend_refuses_what_it_lacks(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve_backend("torch", replace(SPEC, **change))  # type: ignore[arg-type]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'flash' is unknown; use 'auto' or one of triton, torch"):
        resolve_backend("flash", SPEC)


def test_a_backend_whose_module_is_missing_is_rejected_with_the_reason() -> None:
    register_backend("absent", "no_such_package.module:Backend")
    with pytest.raises(ConfigError, match=r"cannot be imported .*no_such_package"):
        resolve_backend("absent", SPEC)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("pagetwin.engine.attention.backend:Nothing", "has no 'Nothing'"),
        ("pagetwin.engine.errors:ConfigError", "is no AttentionBackend"),
    ],
)
def test_a_path_that_leads_to_no_backend_is_an_error(path: str, complaint: str) -> None:
    register_backend("wrong", path)
    with pytest.raises(ConfigError, match=complaint):
        resolve_backend("auto" if "Nothing" in path else "wrong", replace(SPEC, needs_alibi=True))


@pytest.mark.parametrize(("name", "path"), [("x", "no.colon"), ("x", ":Class"), ("auto", "a:B")])
def test_a_malformed_registration_is_refused(name: str, path: str) -> None:
    with pytest.raises(ConfigError):
        register_backend(name, path)
