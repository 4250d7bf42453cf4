"""Estimates as files: ``.npz``, of which anything that reads NumPy's files can read the numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dvae_fast.evaluation.arrays import read_arrays, reading, write_arrays

if TYPE_CHECKING:
    import os

__all__ = ["ABOUT", "arrays_of", "load_estimate", "save_estimate"]

#: the array that holds what is no array, as JSON
ABOUT = "about"
_KIND = "kind"
_T = TypeVar("_T")


def arrays_of(estimate: Any) -> dict[str, np.ndarray]:
    """All that has a number an example, and the k of the curve."""
    values = {f.name: getattr(estimate, f.name) for f in dataclasses.fields(estimate)}
    arrays = {name: v.numpy() for name, v in values.items() if isinstance(v, Tensor)}
    if "curve_k" in values:
        arrays["curve_k"] = np.array(values["curve_k"], dtype=np.int64)
    return arrays


def save_estimate(estimate: Any, path: str | os.PathLike[str]) -> None:
    """Write the fields of an estimate, a dataclass of tensors and of what JSON has.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    arrays = arrays_of(estimate)
    about: dict[str, Any] = {_KIND: type(estimate).__name__}
    for field in dataclasses.fields(estimate):
        if field.name not in arrays:
            about[field.name] = getattr(estimate, field.name)
    write_arrays(path, arrays, ABOUT, about)


def load_estimate(cls: type[_T], path: str | os.PathLike[str]) -> _T:
    """The estimate of that class that `save_estimate` wrote.

    Raises:
        CheckpointError: if the file cannot be read, or holds something else.
    """
    path = Path(path)
    with reading(path, f"a {cls.__name__} that was saved"):
        arrays, about = read_arrays(path, ABOUT)
        kind = about.pop(_KIND)
        if kind != cls.__name__:
            raise ValueError(f"it is {kind}")
        values: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if "curve_k" in values:
            values["curve_k"] = tuple(values["curve_k"].tolist())
        values |= {name: tuple(v) if isinstance(v, list) else v for name, v in about.items()}
        known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(values.keys() - known.keys()):
            raise ValueError(f"{unknown[0]} is not known")
        first = len(values["log_likelihood"])
        for name, value in values.items():
            if isinstance(value, Tensor) and len(value) != first:
                raise ValueError(f"{name} is of {len(value)} examples, not {first}")
        return cls(**values)
