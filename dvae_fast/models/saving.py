"""Models in files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast.files import CHECKPOINT, CheckpointError, load_tensors, save_tensors
from dvae_fast.models.base import Autoencoder
from dvae_fast.models.config import own_parts

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["MODEL", "load_model", "save_model"]

MODEL = "model.safetensors"


def save_model(
    path: str | os.PathLike[str], model: Autoencoder, parameters: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model: its `config` and state.

    What is one's own (encoder, decoder, prior, likelihood, corruption) is written by its parameters
    and the name of its class alone: `load_model` must be given one to put them in. A warning says
    so.

    Args:
        path: the file.
        model: what is written.
        parameters: its state dict, if it is not that of now.

    Raises:
        CheckpointError, MissingExtraError: as :func:`save_tensors`.
    """
    config = model.config()
    if own := own_parts(config):
        warnings.warn(
            f"{', '.join(f'{name} ({what})' for name, what in own.items())} cannot be built again "
            f"by name: load_model must be given {', '.join(f'{name}=' for name in own)}",
            stacklevel=2,
        )
    save_tensors(path, model.state_dict() if parameters is None else parameters, {"model": config})


def load_model(path: str | os.PathLike[str], **own: Any) -> Autoencoder:
    """The model in a file of :func:`save_model`, or the best model of a run's folder.

    Args:
        path: the file or the folder.
        own: ``encoder=``, ``decoder=``, ``prior=``, ``likelihood=`` or ``corruption=``, each that
            the model has of one's own: where the parameters are put, if it has any.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: if there is none, the file is damaged, or a module of one's own is missing
            or does not fit.
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
            model = Autoencoder.from_config(header["model"], **own)
        model.to(dtype=next((t.dtype for t in tensors.values() if t.is_floating_point()), None))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold a model that fits: {error}") from None
    return model.eval()
