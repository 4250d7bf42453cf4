"""The results of an evaluation under way: in memory, and in a file to go on from."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dvae_fast.evaluation.arrays import read_arrays, reading, write_arrays
from dvae_fast.files import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "PARTIAL",
    "PartialResults",
    "fingerprint",
    "partial_exists",
    "read_settings",
    "remove_partial",
]

#: what the file is called in the folder of a run
PARTIAL = "evaluation.partial.npz"

_EVERY = 10.0  # seconds between two writings
_DONE, _SETTINGS = "_done", "_settings"
# Settings whose values would tell a reader nothing.
_OPAQUE = ("data", "parameters", "outputs", "scale")


def fingerprint(parts: Iterable[Any]) -> str:
    """Of tensors' values, shapes and dtypes, and of what else there is as it is printed: tells one
    model or data set from another."""
    digest = hashlib.sha256()
    for t in parts:
        if not isinstance(t, Tensor):
            digest.update(repr(t).encode())
            continue
        t = t.detach().cpu().contiguous()
        digest.update(f"{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    """That of a single process, and those of each of several."""
    return [path, *sorted(path.parent.glob(f"{glob.escape(path.name)}.[0-9]*"))]


def _read(path: Path) -> tuple[dict[str, Any], np.ndarray, dict[str, np.ndarray]]:
    """Settings, the rows done, and their numbers."""
    with reading(path, "partial results"):
        arrays, settings = read_arrays(path, _SETTINGS)
        done = arrays.pop(_DONE)
        if done.ndim != 1 or done.dtype != bool:
            raise ValueError(f"{_DONE} is {done.dtype} of shape {done.shape}")
        for name, values in arrays.items():
            if values.ndim < 1 or len(values) != len(done):
                raise ValueError(f"{name} has shape {values.shape}, of {len(done)} examples")
        (rows,) = done.nonzero()
        return settings, rows, {name: values[rows] for name, values in arrays.items()}


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings of the evaluation kept at `path`; None if there is none."""
    for file in _files(Path(path)):
        if file.exists():
            return _read(file)[0]
    return None


def partial_exists(path: str | os.PathLike[str]) -> bool:
    """Whether anything is kept at `path`."""
    return any(file.exists() for file in _files(Path(path)))


def remove_partial(path: str | os.PathLike[str]) -> bool:
    """Forget what is kept at `path`; whether anything was."""
    found = partial_exists(path)
    for file in _files(Path(path)):
        file.unlink(missing_ok=True)
    return found


def _nearly(found: Any, wanted: Any) -> bool:
    """Whether two lists of numbers differ by rounding alone."""
    if not isinstance(found, list) or not isinstance(wanted, list) or len(found) != len(wanted):
        return False
    try:
        return bool(np.allclose(found, wanted, rtol=1e-3, atol=1e-3, equal_nan=True))
    except (TypeError, ValueError):
        return False


class PartialResults:
    """Numbers of N examples, of which some are done.

    Args:
        examples: N.
        path: a file that takes the finished examples in, every 10 seconds and at `save`; what it
            already holds is done. None for memory alone.
        settings: JSON-able; a file must have the same.
        process: of several that share the work, each with a file of its own, path.0, path.1, …,
            all of which are read.
        expected: what the numbers are called, the shape of an example's and their dtype: a file
            must have all of these and no other. None for whatever it has.

    Raises:
        ValueError: if the file is of an evaluation with other settings.
        CheckpointError: if it cannot be read, or there is no folder to write it in.
    """

    def __init__(
        self,
        examples: int,
        path: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        process: int | None = None,
        expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]] | None = None,
    ) -> None:
        self.done = torch.zeros(examples, dtype=torch.bool, device="cpu")
        self.fields: dict[str, Tensor] = {}
        self._settings = dict(settings)
        self._expected = expected
        self._path = None
        self._written = time.monotonic()
        self._unsaved = False
        if path is None:
            return
        with contextlib.suppress(OSError):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        for file in _files(Path(path)):
            if file.exists():
                self._take(file)
        self._path = Path(path) if process is None else Path(f"{path}.{process}")
        folder = self._path.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or self._path.is_dir():
            raise CheckpointError(f"cannot write {self._path}: no folder to write it in")

    def _take(self, file: Path) -> None:
        settings, rows, arrays = _read(file)
        for name, wanted in self._settings.items():
            found = settings.get(name)
            if found != wanted and not _nearly(found, wanted):
                what = f"the {name} of {file} is {found!r}, not {wanted!r}"
                if name in _OPAQUE:
                    what = f"the {name} of {file} is another"
                raise ValueError(f"partial must hold results of this evaluation: {what}")
        if len(rows) and rows[-1] >= len(self.done):
            raise CheckpointError(f"{file} does not hold partial results of {len(self.done)}")
        try:
            fields = {name: torch.from_numpy(values) for name, values in arrays.items()}
        except (TypeError, ValueError) as error:  # a dtype or a byte order that torch has not
            raise CheckpointError(f"{file} does not hold partial results: {error}") from None
        if wrong := self._unexpected(fields):
            raise CheckpointError(
                f"{file} does not hold partial results of this evaluation: {wrong}; remove it to "
                "start anew"
            )
        self.merge(torch.from_numpy(rows), fields)

    def _unexpected(self, fields: Mapping[str, Tensor]) -> str | None:
        """What is wrong with the fields of a file, if anything."""
        expected = self._expected
        if expected is None:
            if not self.fields:
                return None
            expected = {name: (tuple(t.shape[1:]), t.dtype) for name, t in self.fields.items()}
        for name in expected.keys() - fields.keys():
            return f"it has no {name}"
        for name in fields.keys() - expected.keys():
            return f"it has {name}, which is not known"
        for name, (shape, dtype) in expected.items():
            found = fields[name]
            if tuple(found.shape[1:]) != shape or found.dtype != dtype:
                got = f"{found.dtype} of shape {tuple(found.shape[1:])}"
                return f"its {name} is {got} for an example, not {dtype} of shape {shape}"
        return None

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
        self.merge(torch.arange(first, first + count, device="cpu"), fields)
        self._unsaved = True
        if time.monotonic() - self._written > _EVERY:
            self.save()

    def save(self) -> None:
        """Write the file, if there is one and it lacks something.

        Where that fails, of a full disk say, it warns: the results are not lost, only not kept.
        """
        if self._path is None or not self._unsaved:
            return
        arrays = {name: values.numpy() for name, values in self.fields.items()}
        arrays[_DONE] = self.done.numpy()
        self._written = time.monotonic()
        try:
            write_arrays(self._path, arrays, _SETTINGS, self._settings)
            self._unsaved = False
        except CheckpointError as error:
            warnings.warn(f"partial results are not kept: {error}", RuntimeWarning, stacklevel=2)

    def batches(self, size: int, grid: int | None = None) -> list[tuple[int, int]]:
        """What is not done, as ranges [first, stop) of at most `size` consecutive examples; with a
        `grid`, which is that of the first example, none goes over a multiple of `size` in it."""
        out: list[tuple[int, int]] = []
        for i in (~self.done).nonzero().flatten().tolist():
            begins = grid is not None and (grid + i) % size == 0
            if out and out[-1][1] == i and i - out[-1][0] < size and not begins:
                out[-1] = (out[-1][0], i + 1)
            else:
                out.append((i, i + 1))
        return out
