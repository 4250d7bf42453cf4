"""Models in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast.files import CHECKPOINT, CheckpointError, load_tensors, save_tensors
from dvae_fast.models.gaussian import LatentVariableModel

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["MODEL", "load_model", "save_model"]

MODEL = "model.safetensors"


def save_model(
    path: str | os.PathLike[str], config: Mapping[str, Any], parameters: Mapping[str, Tensor]
) -> None:
    """Write a model: its `config()` and state dict. Raises as :func:`save_tensors`."""
    save_tensors(path, parameters, {"model": dict(config)})


def load_model(path: str | os.PathLike[str]) -> LatentVariableModel:
    """The model in a file of :func:`save_model`, or the best model of a run's folder.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: if there is none, or the file is damaged.
        MissingExtraError: if safetensors is not installed.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        if not (path / MODEL).is_file():
            why = "is not the folder of a run"
            if (path / CHECKPOINT).is_file():
                why = "is the folder of a run that has not finished an epoch yet"
            raise CheckpointError(f"{path} {why}: it holds no {MODEL}")
        path = path / MODEL
    tensors, header = load_tensors(path)
    try:
        # The initial values are replaced at once; drawing them must not move the global generator.
        with torch.random.fork_rng(devices=[]):
            model = LatentVariableModel.from_config(header["model"])
        model.to(dtype=next((t.dtype for t in tensors.values() if t.is_floating_point()), None))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold a model that fits: {error}") from None
    return model.eval()
