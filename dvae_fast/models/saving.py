"""Models in files."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dvae_fast.files import CHECKPOINT, CheckpointError, one_line, read_tensors, save_tensors
from dvae_fast.models.base import Autoencoder
from dvae_fast.models.config import own_parts
from dvae_fast.models.wrappers import unwrapped

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["MODEL", "SavedModel", "load_model", "read_model", "save_model"]

MODEL = "model.safetensors"


def save_model(
    path: str | os.PathLike[str],
    model: Autoencoder,
    parameters: Mapping[str, Tensor] | None = None,
    *,
    run: Mapping[str, Any] | None = None,
) -> str:
    """Write a model, its `config` and state, as a safetensors file with a digest of all of it.

    `load_model` reads it; the tensors alone are what ``safetensors.torch.load_file`` gives.

    What is one's own (encoder, decoder, prior, likelihood, corruption) is written by its parameters
    and the name of its class alone: `load_model` must be given one to put them in. A warning says
    so.

    Args:
        path: the file.
        model: what is written; of one that is wrapped, as by `DistributedDataParallel`, the model
            inside.
        parameters: its state dict, if it is not that of now.
        run: what it was trained with, its data above all; JSON-able.

    Returns:
        The digest, 64 hexadecimal digits: the same for the same content.

    Raises:
        TypeError: if it is no model of this package.
        CheckpointError, MissingExtraError: as :func:`save_tensors`.
    """
    model = unwrapped(model)
    if not isinstance(model, Autoencoder):
        raise TypeError(f"model must be a model of this package, got {type(model).__name__}")
    config = model.config()
    if own := own_parts(config):
        warnings.warn(
            f"{', '.join(f'{name} ({what})' for name, what in own.items())} cannot be built again "
            f"by name: load_model must be given {', '.join(f'{name}=' for name in own)}",
            stacklevel=2,
        )
    header = {"model": config} | ({} if run is None else {"run": dict(run)})
    return save_tensors(path, model.state_dict() if parameters is None else parameters, header)


class SavedModel(NamedTuple):
    """What a file of :func:`save_model` holds.

    `run` is what the model was trained with, None if that was not saved; `digest` tells the
    content from any other.
    """

    model: Autoencoder
    run: dict[str, Any] | None
    digest: str


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
    return read_model(path, **own).model


def read_model(path: str | os.PathLike[str], **own: Any) -> SavedModel:
    """As :func:`load_model`, with what else the file says."""
    path = Path(path)
    if path.is_dir() or (not path.suffix and not path.exists()):
        if not (path / MODEL).is_file():
            why = "is not the folder of a run"
            if (path / CHECKPOINT).is_file():
                why = "is the folder of a run that has not finished an epoch yet"
            raise CheckpointError(f"{path} {why}: it holds no {MODEL}")
        path = path / MODEL
    # Tensors of inference mode could not be trained, nor be moved by annealed sampling.
    with torch.inference_mode(False):
        tensors, header, digest = read_tensors(path)
        try:
            model = _build(header["model"], tensors, own)
        except _MISFITS as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
            raise CheckpointError(f"{path} does not hold a model that fits: {what}") from None
    run = header.get("run")
    return SavedModel(model.eval(), run if isinstance(run, dict) else None, digest)


# What a configuration with values of other kinds, or other sizes than its tensors', may raise.
_MISFITS = (
    AttributeError, IndexError, KeyError, MemoryError, OverflowError, RecursionError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip


def _build(config: Any, tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> Autoencoder:
    # The initial values are replaced at once; drawing them must not move the global generator.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        if not own:  # what is one's own has its tensors already
            _check_sizes(_wanted(config), tensors)
        model = Autoencoder.from_config(config, **own)
    model.to(dtype=next((t.dtype for t in tensors.values() if t.is_floating_point()), None))
    model.load_state_dict(tensors)
    return model


def _wanted(config: Any) -> dict[str, Tensor]:
    """The state of the model that `config` describes, without memory; {} if there is none."""
    with contextlib.suppress(*_MISFITS), torch.device("meta"):  # the real thing says what is wrong
        # The rates of a corruption have values, which are looked at.
        without = {"corruption": None} if "corruption" in config else {}
        return Autoencoder.from_config({**config, **without}).state_dict()
    return {}


def _check_sizes(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Before memory is taken for the sizes of a configuration."""
    for name, t in wanted.items():
        if name not in found:
            raise ValueError(f"it holds no {name}, which its configuration asks for")
        if found[name].shape != t.shape:
            raise ValueError(
                f"{name} is of shape {tuple(found[name].shape)}, where its configuration asks for "
                f"{tuple(t.shape)}"
            )
