"""Where examples lie, in memory or on disk: read by rows, as they are, never all at once."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Index = slice | NDArray[np.int64]

__all__ = [
    "ArraySource",
    "FileSource",
    "NpySource",
    "Source",
    "SparseSource",
    "blocks",
    "npy_header",
]

_BLOCK_BYTES = 16 << 20


class Source:
    """N examples of one shape.

    Attributes:
        shape: (N, *shape of an example).
        dtype: of the values, as they lie there.
        stays: whether the values are the same whenever they are read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stays = True

    def read(self, rows: Index) -> NDArray[Any]:
        """The examples of those rows, (n, *shape), not to be written to."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]


class ArraySource(Source):
    """An array in memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def read(self, rows: Index) -> NDArray[Any]:
        return self._array[rows]


class SparseSource(Source):
    """The rows of a sparse matrix of SciPy."""

    def __init__(self, matrix: Any) -> None:
        self._matrix = matrix.tocsr()
        self.shape, self.dtype = self._matrix.shape, self._matrix.dtype

    def read(self, rows: Index) -> NDArray[Any]:
        dense: NDArray[Any] = self._matrix[rows].toarray()
        return dense


class FileSource(Source):
    """An array as it lies in a file, read by rows.

    Not by a map: its pages count as this process's memory as long as it stands, and a page may be
    of megabytes where a row is of kilobytes. An array in Fortran's order has its rows scattered
    over the whole file, and is mapped for each reading all the same.

    Args:
        path: the file.
        dtype, shape, order: of the array.
        offset: bytes before it.
    """

    def __init__(
        self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], order: str, offset: int
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._path, self._order, self._offset = path, order, offset
        self._row = math.prod(shape[1:]) * dtype.itemsize

    def read(self, rows: Index) -> NDArray[Any]:
        if self._order == "F" and 0 not in self.shape:
            mapped: Any = np.memmap(
                self._path, self.dtype, "r", self._offset, self.shape, self._order
            )  # type: ignore[call-overload]
            return np.array(mapped[rows])
        index = np.arange(len(self))[rows]
        values = np.empty((len(index), *self.shape[1:]), self.dtype)
        if not values.size:
            return values
        view = values.reshape(len(index), -1).view(np.uint8).data.cast("B")
        # Rows that follow each other in the file are read at once.
        starts = np.flatnonzero(np.diff(index, prepend=-2) != 1)
        with self._path.open("rb", buffering=0) as file:
            for start, stop in pairwise([*starts.tolist(), len(index)]):
                at = self._offset + int(index[start]) * self._row
                self._fill(file.fileno(), view[start * self._row : stop * self._row], at)
        return values

    def _fill(self, file: int, view: memoryview, at: int) -> None:
        done = 0
        while done < len(view):  # a call reads 2 GB at most
            count = os.preadv(file, [view[done:]], at + done)
            if count == 0:
                raise OSError(f"{self._path} is shorter than it was")
            done += count


class NpySource(FileSource):
    """The array in a ``.npy`` file.

    Raises:
        ValueError, OSError: if the file is damaged, or holds Python objects.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            shape, fortran, dtype = npy_header(file, path.stat().st_size)
            offset = file.tell()
        super().__init__(path, dtype, shape, "F" if fortran else "C", offset)


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def npy_header(
    file: IO[bytes], size: int, name: str = "it"
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and dtype of an ``.npy`` of so many bytes; its values come
    next in the file.

    Raises:
        ValueError: if it holds something else, or Python objects, or not what its header says.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name} is of npy version {version[0]}.{version[1]}")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not loaded")
    wanted, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if held != wanted:
        raise ValueError(
            f"{name} must hold {wanted} bytes of values, as its header says, got {held}"
        )
    return shape, fortran, dtype


def blocks(source: Source, most: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
    """All of it, or the first `most` examples: (index of the first, examples) of some at a time."""
    size = max(1, math.prod(source.shape[1:]) * source.dtype.itemsize)
    step, stop = max(1, _BLOCK_BYTES // size), len(source) if most is None else most
    for first in range(0, stop, step):
        yield first, source.read(slice(first, min(first + step, stop)))
