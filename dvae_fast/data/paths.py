"""Data of one's own at a path: whatever kind of file or folder it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvae_fast.data.arrays import NPY, read_npy, read_npy_folder, read_npz_file
from dvae_fast.data.downloads import DataError
from dvae_fast.data.h5ad import read_h5ad
from dvae_fast.data.images import has_images, read_images
from dvae_fast.data.own import build
from dvae_fast.data.tables import read_csv, read_parquet

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from dvae_fast.data.dataset import Dataset
    from dvae_fast.data.examples import Scaling
    from dvae_fast.data.own import Raw

__all__ = ["SUFFIXES", "load_path"]

#: how to read a file, by the end of its name
_READERS: dict[str, Callable[[Path, str | None], Raw]] = {
    NPY: lambda path, labels: read_npy(path),
    ".npz": read_npz_file,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".h5ad": read_h5ad,
}
SUFFIXES = tuple(_READERS)
#: files in which an array or a column may be named for labels
_NAMED_LABELS = tuple(suffix for suffix in SUFFIXES if suffix != NPY)

#: the data set that was loaded last, which a command asks for several times
_last: dict[Any, Dataset] = {}


def load_path(
    path: str | os.PathLike[str],
    *,
    values: str | None = None,
    binarise: str | None = None,
    split: str = "0.8,0.1,0.1",
    seed: int = 0,
    size: str | None = None,
    grey: bool = False,
    labels: str | None = None,
    scaling: Scaling | None = None,
    missing: str | None = None,
) -> Dataset:
    """The data set in a file (.npy, .npz, .csv, .tsv, .parquet, .h5ad) or a folder of images.

    Args:
        path: there. A folder may hold ``train.npy``, ``valid.npy`` and ``test.npy`` too.
        values, binarise, split, seed: as for `Dataset.from_arrays`.
        size, grey: of images: "32" or "48x64" to resize them to; whether to make them grey.
        labels: of a table the column, of .h5ad the column of obs, of .npz the array with labels.
        scaling: as for `dvae_fast.data.own.build`.
        missing: "nan", if NaN, or a blank of a table, stands for what is missing.

    Raises:
        DataError: if it is not there, cannot be read, or cannot be data, in one line.
        ValueError: if an option does not fit.
        MissingExtraError: if what reads it is not installed.
    """
    where = Path(path).expanduser()
    if not where.exists():
        raise DataError(f"{where} was not found: there is no such file or folder")
    binarise = binarise or "none"
    options = (_stamp(where), binarise, split, seed, size, grey, labels, missing)
    key = (options, values, None if scaling is None else str(scaling.to_dict()))
    if key in _last:
        return _last[key]
    raw = _read(where, size, grey, labels)
    try:
        found = build(
            raw, values=values, binarise=binarise, split=split, seed=seed, scaling=scaling,
            missing=missing,
        )  # fmt: skip
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    _last.clear()
    # As it is asked for again: with what has been found out.
    _last[options, found.values, str(found.scaling.to_dict())] = _last[key] = found
    return found


def _stamp(where: Path) -> tuple[Any, ...]:
    """What changes where a file does."""
    files = sorted(where.rglob("*")) if where.is_dir() else [where]
    return tuple((str(p.resolve()), s.st_size, s.st_mtime_ns) for p in files for s in (p.stat(),))


def _read(where: Path, size: str | None, grey: bool, labels: str | None) -> Raw:
    kind = where.suffix.lower()
    folder = where.is_dir()
    if labels is not None and (folder or kind not in _NAMED_LABELS):
        raise ValueError(
            f"labels must be left out but for {', '.join(_NAMED_LABELS)}, got {labels!r}"
        )
    images = folder and has_images(where)
    if not images and (size is not None or grey):
        name, value = ("size", size) if size is not None else ("grey", grey)
        raise ValueError(f"{name} must be left out but for images, got {value!r}")
    if images:
        return read_images(where, size, grey)
    if folder:
        if any(path.suffix.lower() == NPY for path in where.iterdir()):
            return read_npy_folder(where)
        raise DataError(f"{where} must hold images, or train.npy; it holds neither")
    if kind not in _READERS:
        raise DataError(
            f"{where} must be a folder of images, or a file that ends in {', '.join(SUFFIXES)}"
        )
    return _READERS[kind](where, labels)
