"""Turns a model's name into a model with its weights, on a device."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pagetwin.engine.config import ModelConfig
from pagetwin.engine.errors import ModelError
from pagetwin.engine.models.registry import resolve_architecture
from pagetwin.engine.models.spec import Model, ModelSpec
from pagetwin.engine.models.store import resolve_model
from pagetwin.engine.weights.assign import assign_weights, fill_with_dummy_weights
from pagetwin.engine.weights.checkpoint import DTYPES, open_checkpoint


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run."""

    model: Model
    spec: ModelSpec
    folder: Path
    """Where tokenizer files are, unless the configuration names another place."""
    ignored_tensors: tuple[str, ...]
    """Tensors of the checkpoint that the configuration determines, hence not read."""


@torch.no_grad()
def load_model(config: ModelConfig, device: torch.device) -> LoadedModel:
    """Find, make and fill a model. ModelError says what is missing, damaged or unsupported.

    dtype "auto" is what the checkpoint stores; another dtype rounds or widens every weight.
    """
    path = resolve_model(config.model)
    checkpoint = open_checkpoint(path, config.load_format)
    model_class = resolve_architecture(str(checkpoint.config["architectures"][0]))
    dtype = checkpoint.dtype if config.dtype == "auto" else DTYPES[config.dtype]
    if dtype not in DTYPES.values():
        raise ModelError(f"{path} stores {dtype} weights, which are not supported; set model.dtype")
    model = model_class.from_hf_config(checkpoint.config, dtype=dtype, device=device)
    slots = model.checkpoint_slots()
    ignored: tuple[str, ...] = ()
    if config.load_format == "dummy":
        fill_with_dummy_weights(slots, config.seed)
    else:
        ignored = assign_weights(
            slots, checkpoint.tensors(), tied_names=model.tied_names(), source=str(path)
        )
    return LoadedModel(
        model=model, spec=model.spec, folder=checkpoint.folder, ignored_tensors=ignored
    )
