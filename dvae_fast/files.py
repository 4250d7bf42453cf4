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

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CHECKPOINT",
    "CheckpointError",
    "load_tensors",
    "read_json",
    "save_tensors",
    "write_atomically",
    "write_json",
]

CHECKPOINT = "checkpoint.safetensors"
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
