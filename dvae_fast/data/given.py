"""Data as a caller has it: a tensor, a NumPy array, a DataLoader or a Dataset; and what travels
with each example."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from dvae_fast._checks import check_dense

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Data = Tensor | np.ndarray[Any, Any] | DataLoader[Any] | Dataset[Any]

__all__ = ["Given", "as_tensor", "check_rows_of", "given_from"]

_READ = 256  # examples of a Dataset at once


@dataclass(frozen=True, eq=False)
class Given:
    """Some examples: x (N, *shape), and what travels with each.

    Attributes:
        context: (N, *shape), if there is one.
        mask: bool in x's shape, True where x was observed; None: everywhere. x is 0 elsewhere.
    """

    x: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Given:
        more = (None if t is None else t[rows] for t in (self.context, self.mask))
        return Given(self.x[rows], *more)

    def checked(self) -> Given:
        """The same, if the context is a tensor of as many rows; its own device is x's then.

        Raises:
            TypeError, ValueError: if it is not.
        """
        if self.context is None:
            return self
        check_dense("context", self.context)
        if self.context.is_meta:
            raise ValueError("context must hold values, got a tensor on meta")
        check_rows_of("context", self.context, len(self.x))
        return Given(self.x, self.context.to(self.x.device), self.mask)

    def to(self, device: torch.device) -> Given:
        """On that device; to a GPU, without a wait for what runs there."""
        more = (None if t is None else _moved(t, device) for t in (self.context, self.mask))
        return Given(_moved(self.x, device), *more)

    @property
    def tensors(self) -> list[Tensor]:
        """All there are."""
        return [t for t in (self.x, self.context, self.mask) if t is not None]

    @property
    def size(self) -> float:
        """D, or of a mask the mean number of observed dimensions."""
        if self.mask is None:
            return self.x[0].numel()
        return int(self.mask.sum()) / len(self.x)


def check_rows_of(name: str, t: Tensor, examples: int) -> None:
    """Raise ValueError unless `t` has a row for each example."""
    if t.dim() < 1 or len(t) != examples:
        raise ValueError(
            f"{name} must have one row for each of the {examples} examples, "
            f"got shape {tuple(t.shape)}"
        )


def _moved(t: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and t.device.type == "cpu":
        return t.pin_memory().to(device, non_blocking=True)
    return t.to(device)


def as_tensor(name: str, value: Any) -> Any:
    """A NumPy array as a tensor, which shares its memory where that goes; anything else as it is.

    Raises:
        TypeError: if it holds no numbers.
    """
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind not in "biufc":
        raise TypeError(f"{name} must be an array of numbers, got dtype {value.dtype}")
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if any(stride < 0 for stride in value.strides):
        value = np.ascontiguousarray(value)
    with warnings.catch_warnings():  # of memory that must not be written to: nothing here does
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(value)


def given_from(
    x: Data, context: Any = None, *, wants_context: bool = False, name: str = "x"
) -> tuple[Any, Any]:
    """(x, context) as tensors, read into memory where they come from a DataLoader or a Dataset.

    Args:
        x: what is neither of those nor an array is returned as it is, for others to refuse.
        context: the same; None for none.
        wants_context: where none is given and x holds pairs (x, y), y is the context.
        name: of x, for messages.

    Raises:
        TypeError, ValueError: if a Dataset holds something else than numbers, or nothing.
    """
    pairs = None
    if isinstance(x, (DataLoader, Dataset)):
        x, pairs = _read(x, name)
    if context is None and wants_context:
        context = pairs
    return as_tensor(name, x), as_tensor("context", context)


def _read(data: DataLoader[Any] | Dataset[Any], name: str) -> tuple[Tensor, Any]:
    """All of x, in order, and all of y where it holds pairs of tensors, else None."""
    if type(data) is TensorDataset:
        return data.tensors[0], data.tensors[1] if len(data.tensors) > 1 else None
    batches = data if isinstance(data, DataLoader) else _batches(data)
    xs: list[Tensor] = []
    ys: list[Any] = []
    for batch in batches:
        parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
        parts = [as_tensor(name, part) for part in parts]
        if not parts or not isinstance(parts[0], Tensor):
            got = type(parts[0] if parts else batch).__name__
            raise TypeError(
                f"{name} must give tensors or arrays, or tuples whose first is one; got {got}"
            )
        xs.append(parts[0])
        ys.append(parts[1] if len(parts) > 1 else None)
    if not xs:
        raise ValueError(f"{name} must hold N >= 1 examples, got none")
    _say_what_is_dropped(data, sum(map(len, xs)), name)
    if len({part.shape[1:] for part in xs}) > 1:
        shapes = ", ".join(sorted({str(tuple(part.shape[1:])) for part in xs}))
        raise ValueError(f"{name} must hold examples of one shape, got {shapes}")
    whole = all(isinstance(y, Tensor) and y.dim() > 0 for y in ys)
    return torch.cat(xs), torch.cat(ys) if whole else None


def _batches(data: Dataset[Any]) -> Iterator[Any]:
    items: Iterable[Any] = data if isinstance(data, IterableDataset) else _items(data)
    some: list[Any] = []
    for item in items:
        some.append(item)
        if len(some) == _READ:
            yield _together(some)
            some = []
    if some:
        yield _together(some)


def _items(data: Any) -> Iterator[Any]:
    if not hasattr(data, "__len__"):
        raise TypeError(f"x must be a Dataset with a length, got {type(data).__name__}")
    return (data[i] for i in range(len(data)))


def _together(items: list[Any]) -> Any:
    try:
        return default_collate(items)
    except (TypeError, RuntimeError) as error:
        first = items[0][0] if isinstance(items[0], (tuple, list)) and items[0] else items[0]
        raise TypeError(
            f"x must be a Dataset of tensors or arrays of one shape, got {type(first).__name__}s: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _say_what_is_dropped(data: Any, found: int, name: str) -> None:
    if not getattr(data, "drop_last", False) or not hasattr(data.dataset, "__len__"):
        return
    if (left_out := len(data.dataset) - found) > 0:
        warnings.warn(
            f"{name} leaves out {left_out} of {len(data.dataset)} examples: its drop_last is set",
            UserWarning,
            stacklevel=5,
        )
