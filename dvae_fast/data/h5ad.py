"""AnnData's files, ``.h5ad``: cells by genes, dense or sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dvae_fast._extras import require
from dvae_fast.data.downloads import DataError
from dvae_fast.data.own import Raw, label_codes
from dvae_fast.data.sources import ArraySource, Source, SparseSource
from dvae_fast.files import one_line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_h5ad"]

_ENCODINGS = {"csr_matrix": "csr_matrix", "csc_matrix": "csc_matrix"}


def read_h5ad(path: Path, labels: str | None = None) -> Raw:
    """X of the file; `labels` names a column of obs.

    Source: AnnData's on-disk format,
    https://anndata.readthedocs.io/en/latest/fileformat-prose.html.
    """
    h5py = require("h5py", "h5py", "reading an .h5ad file", extra="counts")
    try:
        with h5py.File(path, "r") as file:
            if "X" not in file:
                raise DataError(f"{path} must hold X, the cells by genes, and does not")
            source = _matrix(path, h5py, file["X"])
            columns = _index(file, "var")
            codes: Any = None
            classes: tuple[str, ...] = ()
            if labels is not None:
                codes, classes = _labels(path, h5py, file, labels)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as an .h5ad file: {one_line(error)}") from None
    if len(columns) != source.shape[1]:
        columns = ()
    return Raw(
        path.stem, {"train": source}, None if codes is None else {"train": codes}, classes, columns
    )


def _matrix(path: Path, h5py: Any, x: Any) -> Source:
    if isinstance(x, h5py.Dataset):
        return ArraySource(x[()])
    encoding = x.attrs.get("encoding-type") or f"{x.attrs.get('h5sparse_format', '?')}_matrix"
    if encoding not in _ENCODINGS:
        raise DataError(f"{path}: X must be a matrix, dense or sparse, got {encoding!r}")
    sparse = require("scipy.sparse", "scipy", "reading an .h5ad file", extra="counts")
    shape = x.attrs["shape"] if "shape" in x.attrs else x.attrs["h5sparse_shape"]
    parts = (x["data"][()], x["indices"][()], x["indptr"][()])
    return SparseSource(getattr(sparse, _ENCODINGS[encoding])(parts, shape=tuple(shape)))


def _text(values: Any) -> list[str]:
    return [one.decode() if isinstance(one, bytes) else str(one) for one in values]


def _index(file: Any, name: str) -> tuple[str, ...]:
    """Names of the genes, or of the cells."""
    table = file.get(name)
    if table is None or not hasattr(table, "attrs") or "_index" not in table.attrs:
        return ()
    return tuple(_text(table[table.attrs["_index"]][()]))


def _labels(path: Path, h5py: Any, file: Any, labels: str) -> tuple[Any, tuple[str, ...]]:
    obs = file["obs"]
    if labels not in obs:
        have = ", ".join(name for name in obs if name != obs.attrs.get("_index"))
        raise DataError(f"{path}: obs must have the column {labels!r} for labels, got {have}")
    column = obs[labels]
    if not isinstance(column, h5py.Dataset):  # categories, and the number of each cell's
        codes = column["codes"][()].astype(np.int64)
        if bool((codes < 0).any()):
            raise DataError(f"{path}: column {labels!r} has no label for {(codes < 0).sum()} cells")
        return codes, tuple(_text(column["categories"][()]))
    values = column[()]
    return label_codes(_text(values) if values.dtype.kind in "OS" else values)
