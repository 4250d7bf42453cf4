"""Examples as models take them: tensors, or read a batch at a time from where they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from dvae_fast.data.sources import Source

__all__ = ["MISSING", "Examples", "Scaling", "Streamed", "batches", "mean_of", "observed"]

#: examples at once, where all are read
_BATCH = 1024

#: by name, how data say that a value is missing: of x, which are there
MISSING: dict[str, Callable[[Tensor], Tensor]] = {"nan": lambda x: ~x.isnan()}


def observed(x: Tensor, missing: str | None) -> Tensor | None:
    """The mask of x, True where it was observed; None where nothing can be missing.

    Args:
        x: any shape.
        missing: one of :data:`MISSING`, or None.
    """
    return None if missing is None else MISSING[missing](x)


@dataclass(frozen=True, eq=False)
class Scaling:
    """x = (value − shift)/scale: numbers, or one for each of D."""

    shift: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def by(cls, divisor: float) -> Scaling:
        return cls(np.zeros(1), np.full(1, float(divisor)))

    def __call__(self, values: NDArray[Any]) -> Tensor:
        """(n, D) of any dtype → float32."""
        if self.scale.size == 1 and self.scale[0] == 1 and not self.shift.any():
            return torch.from_numpy(values.astype(np.float32, order="C"))
        if values.dtype == np.uint8 and self.shift.size == 1 and not self.shift.any():
            # As the named sets do: k/255 in float32 is the level's own number.
            levels = torch.from_numpy(values.astype(np.float32, order="C"))
            return levels.div_(float(self.scale[0]))
        scaled = (values - self.shift) / self.scale
        return torch.from_numpy(scaled.astype(np.float32, order="C"))

    def undo(self, x: Tensor) -> Tensor:
        """x, (..., D), as the values were, float64."""
        return x.double() * torch.from_numpy(self.scale) + torch.from_numpy(self.shift)

    def log_volume(self, size: int, mask: Tensor | None = None) -> float:
        """Σ log scale over D = `size`, or over what a mask (N, D) leaves of it, in the mean of the
        N: log p of values is log p(x) less this."""
        logs = np.log(np.broadcast_to(self.scale, size))
        if mask is None:
            return float(logs.sum())
        return float((mask.double().mean(0).cpu() * torch.from_numpy(logs.copy())).sum())

    def to_dict(self) -> dict[str, list[float]]:
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scaling:
        shift, scale = (np.asarray(values[name], np.float64) for name in ("shift", "scale"))
        if shift.ndim != 1 or shift.shape != scale.shape or not bool((scale > 0).all()):
            raise ValueError("scaling must have a shift and a scale > 0 for each value")
        return cls(shift, scale)


class Streamed:
    """Examples that are read when they are asked for, and not kept: float32 rows (N, D).

    ``x[3:7]`` and ``x[index]``, of an int64 tensor, are tensors.

    Args:
        source: where they lie.
        index: which of its rows, in order; None for all.
        scaling: what is made of the values.
        arrange: from (n, *shape) as they lie there to the order of a picture.
        draw: what is made of consecutive rows, given the index of the first, a multiple of `unit`.
    """

    def __init__(
        self,
        source: Source,
        index: NDArray[np.int64] | None,
        scaling: Scaling,
        arrange: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
        draw: Callable[[Tensor, int], Tensor] | None = None,
        unit: int = 1,
    ) -> None:
        self._source, self._index, self._scaling = source, index, scaling
        self._arrange, self._draw, self._unit = arrange, draw, unit
        count = len(source) if index is None else len(index)
        self.shape = torch.Size((count, math.prod(source.shape[1:])))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        if isinstance(rows, Tensor):
            if self._draw is not None:
                raise TypeError("x must be read by a slice where it is drawn, got an index")
            return self._read(rows.cpu().numpy())
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return self[torch.arange(start, stop, step, device="cpu")]
        stop = max(start, stop)
        if stop - start > _BATCH:  # two copies of some at a time, not of all
            whole = torch.empty((stop - start, self.shape[1]), dtype=torch.float32, device="cpu")
            for first in range(start, stop, _BATCH):
                part = self[first : min(first + _BATCH, stop)]
                whole[first - start : first - start + len(part)] = part
            return whole
        if self._draw is None:
            return self._read(slice(start, stop))
        first, last = start - start % self._unit, min(stop + -stop % self._unit, len(self))
        return self._draw(self._read(slice(first, last)), first)[start - first : stop - first]

    def _read(self, rows: slice | NDArray[np.int64]) -> Tensor:
        chosen = rows if self._index is None else self._index[rows]
        values = self._source.read(chosen)
        if self._arrange is not None:
            values = self._arrange(values)
        return self._scaling(values.reshape(len(values), self.shape[1]))

    def drawn(self, draw: Callable[[Tensor, int], Tensor], unit: int) -> Streamed:
        """The same, of which a draw is made at each reading."""
        return Streamed(self._source, self._index, self._scaling, self._arrange, draw, unit)

    def first(self, count: int | None) -> Streamed:
        """The first so many; all where None."""
        if count is None:
            return self
        index = np.arange(len(self)) if self._index is None else self._index
        return Streamed(
            self._source, index[:count], self._scaling, self._arrange, self._draw, self._unit
        )

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i : i + 1][0] for i in range(len(self)))


#: (N, D) in memory or not: has a length and a shape, and `x[a:b]` and `x[index]` are tensors
Examples = Tensor | Streamed


def batches(x: Examples, size: int = _BATCH) -> Iterator[Tensor]:
    """All of x, some rows at a time."""
    for first in range(0, len(x), size):
        yield x[first : first + size]


def mean_of(x: Examples, missing: str | None = None) -> Tensor:
    """(D,) in float32, summed in float64, of what was observed; NaN of what never was."""
    if isinstance(x, Tensor) and missing is None:
        return x.mean(0, dtype=torch.float64).float()
    device = x.device if isinstance(x, Tensor) else "cpu"
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=device)
    count = torch.zeros_like(total)
    for batch in batches(x):
        mask = observed(batch, missing)
        seen = batch if mask is None else batch.masked_fill(~mask, 0)
        total += seen.sum(0, dtype=torch.float64)
        count += len(batch) if mask is None else mask.sum(0)
    return (total / count).float()
