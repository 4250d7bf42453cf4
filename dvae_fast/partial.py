"""The results of an evaluation under way: in memory, and in a file to go on from."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dvae_fast.checkpoint import CheckpointError, write_atomically

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

__all__ = ["PartialResults", "fingerprint", "read_settings", "remove_partial"]

_EVERY = 10.0  # seconds between two writings
_DONE, _SETTINGS = "_done", "_settings"


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Of values, shapes and dtypes: tells one model or data set from another."""
    digest = hashlib.sha256()
    for t in tensors:
        t = t.detach().cpu().contiguous()
        digest.update(f"{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    """That of a single process, and those of each of several."""
    return [path, *sorted(path.parent.glob(f"{path.name}.[0-9]*"))]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = dict(file)
        return json.loads(str(arrays.pop(_SETTINGS))), arrays
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} does not hold partial results: {error}") from None


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings of the evaluation kept at `path`; None if there is none."""
    for file in _files(Path(path)):
        if file.exists():
            return _read(file)[0]
    return None


def remove_partial(path: str | os.PathLike[str]) -> None:
    """Forget what is kept at `path`, if anything is."""
    for file in _files(Path(path)):
        file.unlink(missing_ok=True)


class PartialResults:
    """Numbers of N examples, of which some are done.

    Args:
        examples: N.
        path: a file that takes the finished examples in, every 10 seconds and at `save`; what it
            already holds is done. None for memory alone.
        settings: JSON-able; a file must have the same.
        process: of several that share the work, each with a file of its own, path.0, path.1, …,
            all of which are read.

    Raises:
        ValueError: if the file is of an evaluation with other settings.
        CheckpointError: if it cannot be read.
    """

    def __init__(
        self,
        examples: int,
        path: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        process: int | None = None,
    ) -> None:
        self.done = torch.zeros(examples, dtype=torch.bool)
        self.fields: dict[str, Tensor] = {}
        self._settings = json.dumps(dict(settings), sort_keys=True)
        self._path = None
        self._written = time.monotonic()
        self._unsaved = False
        if path is None:
            return
        for file in _files(Path(path)):
            if file.exists():
                self._take(file)
        self._path = Path(path) if process is None else Path(f"{path}.{process}")

    def _take(self, file: Path) -> None:
        settings, arrays = _read(file)
        for name, wanted in json.loads(self._settings).items():
            if settings.get(name) != wanted:
                raise ValueError(
                    f"partial must hold results of this evaluation: the {name} of {file} is "
                    f"{settings.get(name)!r}, not {wanted!r}"
                )
        (rows,) = arrays.pop(_DONE).nonzero()
        self.merge(
            torch.from_numpy(rows), {n: torch.from_numpy(a[rows]) for n, a in arrays.items()}
        )

    def merge(self, rows: Tensor, fields: Mapping[str, Tensor]) -> None:
        """Take in the numbers of `rows`, an index of examples."""
        for name, values in fields.items():
            if name not in self.fields:
                self.fields[name] = values.new_zeros(len(self.done), *values.shape[1:])
            self.fields[name][rows] = values
        self.done[rows] = True

    def put(self, first: int, fields: Mapping[str, Tensor]) -> None:
        """Take in the numbers of the examples first, first + 1, …"""
        count = len(next(iter(fields.values())))
        self.merge(torch.arange(first, first + count), fields)
        self._unsaved = True
        if time.monotonic() - self._written > _EVERY:
            self.save()

    def save(self) -> None:
        """Write the file, if there is one and it lacks something."""
        if self._path is None or not self._unsaved:
            return
        file = io.BytesIO()
        arrays: dict[str, Any] = {name: values.numpy() for name, values in self.fields.items()}
        arrays[_DONE], arrays[_SETTINGS] = self.done.numpy(), np.array(self._settings)
        np.savez(file, **arrays)
        write_atomically(self._path, file.getvalue())
        self._written, self._unsaved = time.monotonic(), False

    def batches(self, size: int) -> list[tuple[int, int]]:
        """What is not done, as ranges [first, stop) of at most `size` consecutive examples."""
        out: list[tuple[int, int]] = []
        for i in (~self.done).nonzero().flatten().tolist():
            if out and out[-1][1] == i and i - out[-1][0] < size:
                out[-1] = (out[-1][0], i + 1)
            else:
                out.append((i, i + 1))
        return out
