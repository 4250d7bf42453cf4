"""Tables of numbers: ``.csv``, ``.tsv`` and ``.parquet``."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dvae_fast._extras import require
from dvae_fast.data.downloads import DataError
from dvae_fast.data.own import Raw, array_raw, label_codes
from dvae_fast.files import one_line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_csv", "read_parquet"]

#: what separates the values of a line, the likeliest first
_SEPARATORS = (",", "\t", ";")
#: what pandas calls the column of row numbers that it writes itself
_ROW_NUMBERS = "Unnamed: 0"
#: what pandas takes for a value that is missing, besides nothing
_MISSING = frozenset(["NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A"])


def read_csv(path: Path, labels: str | None = None) -> Raw:
    """A text file of one line an example, with a line of names first or without."""
    pandas = require("pandas", "pandas", "reading a table", extra="tables")
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            head = next((line for line in file if line.strip()), "")
        if not head:
            raise DataError(f"{path} must hold a table of numbers, and is empty")
        separator = next((s for s in _SEPARATORS if s in head), _SEPARATORS[0])
        cells = [cell.strip().strip("\"'") for cell in head.strip("\r\n").split(separator)]
        with warnings.catch_warnings():  # of columns of several types, which are looked at below
            warnings.simplefilter("ignore")
            read = partial(
                pandas.read_csv,
                path,
                sep=separator,
                encoding="utf-8-sig",
                skipinitialspace=True,
            )
            frame = read(header=None if _are_values(cells) else 0)
            if labels not in cells and _is_like_the_others(cells, frame):
                frame = read(header=None)
    except (OSError, ValueError, OverflowError) as error:  # pandas' own are ValueErrors
        raise DataError(f"{path} cannot be read as a table: {one_line(error)}") from None
    _check_names(path, frame)
    return _raw(path, frame, labels)


def _are_values(cells: list[str]) -> bool:
    """Whether those of the first line are values: a number at least, and else what is missing."""
    blank = [not cell or cell in _MISSING for cell in cells]
    return all(b or _is_number(c) for b, c in zip(blank, cells, strict=True)) and not all(blank)


def _is_like_the_others(cells: list[str], frame: Any) -> bool:
    """Whether a first line of numbers and text, that was taken for names, is an example: the text
    is no name of its column, but is in it again, as labels are."""
    if len(cells) != frame.shape[1] or not any(cell and _is_number(cell) for cell in cells):
        return False
    texts = [i for i, cell in enumerate(cells) if not _is_number(cell)]
    return any(
        not _is_numeric(column) and bool((column.astype(str).str.strip() == cells[i]).any())
        for i, column in ((i, frame.iloc[:, i]) for i in texts)
    )


def _check_names(path: Path, frame: Any) -> None:
    """Raise DataError if pandas took values for names of rows: the first of each line, where the
    first line has fewer names than the others have values."""
    index, count = frame.index, len(frame)
    if index.nlevels == 1 and (
        not _is_numeric(index) or any((index == first + np.arange(count)).all() for first in (0, 1))
    ):
        return
    names = frame.shape[1]
    raise DataError(
        f"{path} must have as many names in its first line as values in the others, got {names} "
        f"and {names + index.nlevels}"
    )


def read_parquet(path: Path, labels: str | None = None) -> Raw:
    """A Parquet file of columns of numbers."""
    pandas = require("pandas", "pandas", "reading a table", extra="tables")
    require("pyarrow", "pyarrow", "reading a .parquet file", extra="tables")
    try:
        frame = pandas.read_parquet(path)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read as a table: {one_line(error)}") from None
    return _raw(path, frame, labels)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return not cell
    return True


def _raw(path: Path, frame: Any, labels: str | None) -> Raw:
    frame.columns = [str(name) for name in frame.columns]
    if _ROW_NUMBERS in frame and bool((frame[_ROW_NUMBERS] == np.arange(len(frame))).all()):
        frame = frame.drop(columns=_ROW_NUMBERS)
    codes: Any = None
    classes: tuple[str, ...] = ()
    if labels is not None:
        if labels not in frame:
            raise DataError(
                f"{path} must have the column {labels!r} for labels, got {_few(frame.columns)}"
            )
        column = frame[labels]
        if bool(column.isna().any()):
            row = int(np.flatnonzero(column.isna().to_numpy())[0])
            raise DataError(f"{path}: column {labels!r} has no label in row {row + 1}")
        is_text = not _is_numeric(column)
        try:
            codes, classes = label_codes(
                column.astype(str).to_list() if is_text else column.to_numpy()
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: column {labels!r}: {error}") from None
        frame = frame.drop(columns=labels)
    if not len(frame) or not len(frame.columns):
        raise DataError(f"{path} must hold rows and columns of numbers, got {frame.shape}")
    for name in frame.columns:  # of True, False and what is missing
        if frame[name].dtype == object and frame[name].dropna().isin([True, False]).all():
            frame[name] = frame[name].astype(float)
    text = [name for name in frame.columns if not _is_numeric(frame[name])]
    if text:
        column = frame[text[0]]
        found = list(enumerate(column.tolist()))
        row, value = next((pair for pair in found if not _is_number(str(pair[1]))), found[0])
        raise DataError(
            f"{path}: columns must hold numbers, and {text[0]!r} holds {str(value)[:40]!r} in row "
            f"{row + 1}" + (f" (and so {_few(text[1:])})" if text[1:] else "")
            + f"; --labels {text[0]} takes it for labels"
        )  # fmt: skip
    whole = all(dtype.kind in "biu" for dtype in frame.dtypes) and not frame.isna().any(axis=None)
    array = frame.to_numpy(np.int64 if whole else np.float64, na_value=0 if whole else np.nan)
    more = {"labels": None if codes is None else {"train": codes}, "classes": classes}
    return array_raw(path.stem, {"train": array}, columns=tuple(frame.columns), **more)


def _is_numeric(column: Any) -> bool:
    kind = getattr(column.dtype, "kind", "O")
    return kind in "biuf"


def _few(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
