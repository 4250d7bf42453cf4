"""Files of a run: written whole or not at all, tensors in safetensors, the rest in JSON, no pickle.

``checkpoint.safetensors`` holds all a run needs to go on, ``model.safetensors`` the best model
alone. Each carries its JSON part in the safetensors header, so that numbers and tensors can
never come from two different moments.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast._extras import require
from dvae_fast.models.gaussian import LatentVariableModel

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CHECKPOINT",
    "MODEL",
    "CheckpointError",
    "load_model",
    "load_optimizer",
    "load_tensors",
    "optimizer_tensors",
    "read_json",
    "save_model",
    "save_tensors",
    "write_atomically",
    "write_json",
]

CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
_HEADER = "dvae_fast"


class CheckpointError(RuntimeError):
    """A file cannot be written or read; the message names it, the reason and what is intact."""


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one.

    Raises:
        CheckpointError: if it cannot be written, for want of space or permission, say. What
            stood at `path` is then intact, and no temporary file is left.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, because a rename is atomic only within one file system.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        intact = "; the earlier file is intact" if path.is_file() else ""
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}{intact}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    # mkstemp makes files private, whatever the umask; reading the umask means setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; not every file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON, atomically. Raises as :func:`write_atomically`."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file.

    Raises:
        CheckpointError: if it is absent, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not a JSON file: {error}") from None


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON-able header as one safetensors file, atomically.

    Raises:
        CheckpointError: if the file cannot be written.
        MissingExtraError: if safetensors is not installed.
    """
    safetensors = require("safetensors.torch", "safetensors", "saving a run")
    # Parts of one storage would be refused; a copy of each is what the file holds anyway.
    whole = {name: t.detach().clone(memory_format=torch.contiguous_format)
             for name, t in tensors.items()}  # fmt: skip
    write_atomically(path, safetensors.save(whole, {_HEADER: json.dumps(header)}))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file of :func:`save_tensors`, on the CPU.

    Raises:
        CheckpointError: if the file is absent, damaged or of another kind.
        MissingExtraError: if safetensors is not installed.
    """
    safetensors = require("safetensors", "safetensors", "reading a run")
    if not Path(path).is_file():
        raise CheckpointError(f"cannot read {path}: there is no such file")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except KeyError:
        raise CheckpointError(f"{path} was not written by dvae_fast: it has no header") from None
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


# --- models and optimisers --------------------------------------------------------------------


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


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> dict[str, Tensor]:
    """The optimiser's state, every entry a tensor, under ``<parameter's name>/<entry>``."""
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        states.setdefault(name, {})[entry] = value
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    state = {i: states[name] for i, name in enumerate(order) if name in states}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
