"""Decides whether a checkpoint fits a model, tensor by tensor, and copies it in.

A tensor is used once, and each parameter is filled once: a checkpoint of the wrong model, or a
part of one, is refused, never half loaded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagetwin.engine.errors import ModelError

DERIVED_SUFFIXES = (".rotary_emb.inv_freq",)
"""Endings of tensors that old checkpoints store although the configuration determines them."""

_MAX_NAMES = 4


@dataclass
class _Problems:
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)

    def text(self) -> str:
        kinds = {
            "missing": self.missing,
            "not part of the model": self.unknown,
            "stored more than once": self.repeated,
            "of the wrong shape": self.misshapen,
            "unlike the one it is tied to": self.unequal,
        }
        return "; ".join(_listed(names, kind) for kind, names in kinds.items() if names)


def _listed(names: list[str], kind: str) -> str:
    count = f"{len(names)} tensor{'s' if len(names) > 1 else ''} {kind}: "
    shown = ", ".join(names[:_MAX_NAMES])
    return count + shown + (f" and {len(names) - _MAX_NAMES} more" if names[_MAX_NAMES:] else "")


def assign_weights(
    slots: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    tied_names: Mapping[str, str],
    source: str,
) -> tuple[str, ...]:
    """Copy each tensor into its slot; returns the names left aside because they are derived.

    `tied_names` maps further names of a slot to the slot's own: either will do, both must be
    equal. `source` is what messages call the checkpoint. ModelError lists every misfit.
    """
    problems = _Problems()
    derived: list[str] = []
    seen: set[str] = set()
    filled: dict[str, str] = {}
    for name, tensor in tensors:
        slot_name = tied_names.get(name, name)
        slot = slots.get(slot_name)
        if name in seen:
            problems.repeated.append(name)
        elif slot is None and name.endswith(DERIVED_SUFFIXES):
            derived.append(name)
        elif slot is None:
            problems.unknown.append(name)
        elif slot.shape != tensor.shape:
            shapes = f"{list(tensor.shape)}, needed {list(slot.shape)}"
            problems.misshapen.append(f"{name} ({shapes})")
            filled[slot_name] = name
        elif slot_name not in filled:
            slot.copy_(tensor)
            filled[slot_name] = name
        elif not torch.equal(slot, tensor.to(slot.device, slot.dtype)):
            problems.unequal.append(f"{name} and {filled[slot_name]}")
        seen.add(name)
    problems.missing = [name for name in slots if name not in filled]
    if text := problems.text():
        raise ModelError(
            f"the weights in {source} do not fit config.json: {text}; fetch the model again, or "
            "correct its config.json"
        )
    return tuple(derived)


def fill_with_dummy_weights(slots: Mapping[str, Tensor], seed: int) -> None:
    """Random weights that depend on the seed and the kind of device, not on dtype before rounding.

    Matrices are normal with deviation 0.02, as training starts; vectors of weights are 1, biases 0.
    They are drawn where they are used: a host would take minutes for those of a large model.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for name in sorted(slots):
        slot = slots[name]
        if slot.device not in generators:
            generators[slot.device] = torch.Generator(slot.device).manual_seed(seed)
        if slot.ndim > 1:
            generator = generators[slot.device]
            slot.copy_(torch.randn(slot.shape, generator=generator, device=slot.device) * 0.02)
        else:
            slot.fill_(0.0 if name.endswith(".bias") else 1.0)
