"""Data of one's own: looked at, split, labelled, and made a `Dataset`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dvae_fast._checks import check_choice
from dvae_fast._text import counted
from dvae_fast.data.dataset import (
    BINARISATIONS,
    SPLIT,
    SPLITS,
    Dataset,
    check_missing,
    fixed_draw,
)
from dvae_fast.data.downloads import DataError
from dvae_fast.data.examples import Scaling, Streamed
from dvae_fast.data.kinds import KINDS, REAL, Look, kind_of
from dvae_fast.data.sources import ArraySource, blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dvae_fast.data.examples import Examples
    from dvae_fast.data.kinds import Kind
    from dvae_fast.data.sources import Source

__all__ = [
    "MOST_KEPT",
    "Raw",
    "array_raw",
    "build",
    "check_own_binarise",
    "check_split",
    "class_codes",
    "describe",
    "is_split",
    "label_codes",
    "named_as",
]

_TRAIN, _VALID, _TEST = SPLITS
_FOR = ("for training", "for validation", "for testing")
#: bytes of float32 up to which examples are kept in memory
MOST_KEPT = 512 << 20
#: of examples that may be others at each reading, how many are looked at
_LOOKED_AT = 10_000
#: numbers of channels of images whose channels come last
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Raw:
    """What a file, a folder or the user's arrays hold, as it is.

    Attributes:
        name: what it is called.
        parts: examples of "train", which are all of them where the other splits are absent.
        labels: of each part, int64; None where there are none.
        classes: names of labels 0, 1, ….
        columns: names of a table's values.
        values: what they are, where the format says so.
    """

    name: str
    parts: dict[str, Source]
    labels: dict[str, NDArray[np.int64]] | None = None
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    values: str | None = None
    notes: list[str] = field(default_factory=list)


# --- labels ---------------------------------------------------------------------------------------


def class_codes(labels: Sequence[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(codes, names in order) of names of classes."""
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    return codes.reshape(-1).astype(np.int64), tuple(str(name) for name in names)


def label_codes(labels: Any) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(labels as int64, their names) of whole numbers, which stay, or of strings.

    Raises:
        TypeError, ValueError: if they are something else.
    """
    found = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise ValueError(f"labels must have shape (N,), got {found.shape}")
    if found.dtype.kind in "OUS":
        if found.dtype.kind == "O" and not all(isinstance(one, str) for one in found):
            raise TypeError("labels must be whole numbers or strings, all of them")
        return class_codes(found.tolist())
    if found.dtype.kind not in "biuf":
        raise TypeError(f"labels must be whole numbers or strings, got {found.dtype}")
    if found.dtype.kind == "f" and not bool((found == np.floor(found)).all()):
        first = found[found != np.floor(found)][0]
        raise ValueError(f"labels must be whole numbers, got {first:g}")
    return found.astype(np.int64), ()


# --- the split ------------------------------------------------------------------------------------


def check_split(split: str | Sequence[float]) -> tuple[float, ...]:
    """The three shares of "0.8,0.1,0.1", or of three numbers.

    Raises:
        ValueError: if they are not three above 0 whose sum is 1.
    """
    try:
        parts = split.split(",") if isinstance(split, str) else list(split)
        shares = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        shares = ()
    if len(shares) != 3 or not all(0 < s < 1 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            "split must be three shares above 0 with the sum 1 (train, valid, test), such as "
            f"{SPLIT}; got {split!r}"
        )
    return shares


def check_own_binarise(kind: Kind | None, binarise: str) -> None:
    """Raise ValueError unless one's own data, of that kind if it is known, can be had so."""
    check_choice("binarise", binarise, BINARISATIONS)
    if BINARISATIONS[binarise].published:
        others = ", ".join(name for name, way in BINARISATIONS.items() if not way.published)
        raise ValueError(f"binarise must be one of {others} for your own data; got {binarise!r}")
    if kind is not None and not BINARISATIONS[binarise].grey and not kind.is_unit:
        raise ValueError(f"binarise must be none for {kind.label}, got {binarise!r}")


def is_split(name: str) -> str | None:
    """Which split the name of an array, file or folder means; None if it means none."""
    return _SPLIT_NAMES.get(name.lower())


_SPLIT_NAMES = {
    "train": _TRAIN, "training": _TRAIN, "valid": _VALID, "val": _VALID, "validation": _VALID,
    "dev": _VALID, "test": _TEST, "testing": _TEST,
}  # fmt: skip


def _cut(count: int, missing: list[str], shares: dict[str, float], seed: int) -> dict[str, Any]:
    """Which of `count` training examples each split has, of "train" and those that are missing."""
    if not missing:
        return {_TRAIN: None}
    if count <= len(missing):
        raise ValueError(
            f"there must be {len(missing) + 1} examples at least, one for each of "
            f"{', '.join([_TRAIN, *missing])}; there are {count}"
        )
    whole = shares[_TRAIN] + sum(shares[name] for name in missing)
    most = count - 1
    order = np.random.RandomState(seed).permutation(count)
    cut: dict[str, Any] = {}
    for i, name in enumerate(missing):
        n = max(1, min(round(count * shares[name] / whole), most - (len(missing) - 1 - i)))
        cut[name], order, most = order[len(order) - n :], order[: len(order) - n], most - n
    return {_TRAIN: order} | cut


# --- building -------------------------------------------------------------------------------------


def build(
    raw: Raw,
    *,
    values: str | None = None,
    binarise: str | None = None,
    split: str | Sequence[float] = SPLIT,
    seed: int = 0,
    scaling: Scaling | None = None,
    most_kept: int | None = None,
    missing: str | None = None,
) -> Dataset:
    """The data set of what was found.

    Args:
        raw: that.
        values: what the values are, one of :data:`KINDS`; None to look.
        binarise, split, seed, missing: as for `Dataset.from_arrays`.
        scaling: that of the data that a model was trained on; None for one that suits these.
        most_kept: bytes of float32 that may be kept in memory; above that they are streamed.

    Raises:
        ValueError: with the reason why it cannot be data.
    """
    check_missing(missing)
    shares = dict(zip(SPLITS, check_split(split), strict=True))
    way = BINARISATIONS[binarise or "none"]
    shape, arrange = _shape_of(raw)
    _check_labels(raw)
    absent = [name for name in (_VALID, _TEST) if name not in raw.parts]
    cut = _cut(len(raw.parts[_TRAIN]), absent, shares, seed)
    is_real = (values or raw.values) == REAL
    look = Look(raw.parts[_TRAIN].dtype, real=is_real, missing=missing is not None)
    _see(look, raw, arrange, cut[_TRAIN])
    _check_known(look, raw, shape)
    try:
        kind, divisor = kind_of(look, shape, values or raw.values)
    except ValueError as error:
        raise ValueError(f"{error}, {_place(raw, *look.lowest, shape)}") from None
    check_own_binarise(KINDS[kind], binarise or "none")
    if scaling is None:
        scaling = _scaling(look, kind, divisor, is_table=len(shape) == 1)
    size = math.prod(shape)
    if scaling.scale.size not in (1, size):
        raise ValueError(
            f"examples must hold {scaling.scale.size} values as those of the training, got {size}"
        )
    total = 4 * size * sum(len(part) for part in raw.parts.values())
    most_kept = MOST_KEPT if most_kept is None else most_kept
    kept = total <= most_kept and all(part.stays for part in raw.parts.values())
    if way.once and not kept:
        raise ValueError(
            "binarise must be dynamic or none for data that are streamed rather than held in "
            f"memory, got {binarise!r}"
        )
    parts: dict[str, Examples] = {}
    labels: dict[str, Tensor] = {}
    for name in SPLITS:
        source = raw.parts.get(name, raw.parts[_TRAIN])
        index = cut.get(name) if name == _TRAIN or name in absent else None
        streamed = Streamed(source, index, scaling, arrange)
        parts[name] = streamed[:] if kept else streamed
        if way.once:
            parts[name] = fixed_draw(streamed[:], seed, name, missing)
        if raw.labels is not None:
            of_part = raw.labels.get(name, raw.labels[_TRAIN])
            labels[name] = torch.from_numpy(of_part if index is None else of_part[index])
    mean = torch.from_numpy((_mean_of_all(look) - scaling.shift) / scaling.scale).float()
    ends = (np.array([look.low, look.high]) - scaling.shift.mean()) / scaling.scale.mean()
    low, high = (0.0, 1.0) if KINDS[kind].is_unit else (float(ends[0]), float(ends[1]))
    return Dataset(
        raw.name, parts[_TRAIN], parts[_VALID], parts[_TEST], shape if len(shape) > 1 else None,
        binarise or "none", seed, mean, kind, labels or None, raw.classes, raw.columns,
        look.fingerprint, scaling, (low, high if high > low else low + 1), missing,
        look.unknown / look.seen,
    )  # fmt: skip


def _shape_of(raw: Raw) -> tuple[tuple[int, ...], Callable[..., Any] | None]:
    """An example's shape, (D,), (H, W) or (C, H, W), and how to bring one to it."""
    shapes = {name: part.shape for name, part in raw.parts.items()}
    shape = shapes[_TRAIN]
    for name, part in raw.parts.items():
        if not part.shape:
            raise ValueError("examples must have shape (N, D), or (N, *shape), got one number")
        if len(part) < 1:
            raise ValueError(f"{_TRAIN if name == _TRAIN else name} must hold examples, got none")
        if part.dtype.kind not in "biuf":
            raise ValueError(f"values must be numbers, got {part.dtype}")
        if part.dtype.itemsize > 8:
            raise ValueError(f"values must be numbers of 64 bits or fewer, got {part.dtype}")
        if part.shape[1:] != shape[1:]:
            raise ValueError(
                f"examples of every split must have one shape, got {shape[1:]} in {_TRAIN} and "
                f"{part.shape[1:]} in {name}"
            )
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise ValueError(
            "examples must have shape (N, D), (N, H, W), (N, C, H, W) or (N, H, W, C), "
            f"got {tuple(shape)}"
        )
    if len(shape) == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS:
        return (shape[3], shape[1], shape[2]), _channels_first
    return tuple(shape[1:]), None


def _channels_first(images: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(images, -1, 1)


def _check_labels(raw: Raw) -> None:
    if raw.labels is None:
        return
    for name, part in raw.parts.items():
        if name not in raw.labels:
            raise ValueError(f"labels must be given for every part or for none; {name} has none")
        if len(raw.labels[name]) != len(part):
            raise ValueError(
                f"labels must be as many as the examples, {len(part):,} in {name}; got "
                f"{len(raw.labels[name]):,}"
            )


def named_as(data: Dataset, names: Mapping[str, Sequence[str]] | None) -> Dataset:
    """The same, its labels counted as those of the data that a model was trained on.

    Args:
        names: "columns" and "classes" of those; empty where they have none.

    Raises:
        DataError: if these have other columns, or a class that those have not.
    """
    if names is None:
        return data
    columns, classes = tuple(names["columns"]), tuple(names["classes"])
    if columns and data.columns and columns != data.columns:
        raise DataError(
            f"{data.name} must have the columns of the training, in order, {', '.join(columns)}; "
            f"got {', '.join(data.columns)}"
        )
    if not classes or not data.classes or classes == data.classes or data.labels is None:
        return data
    if others := [name for name in data.classes if name not in classes]:
        raise DataError(
            f"{data.name} must have classes of the training, {', '.join(classes)}; "
            f"got {', '.join(others)} too"
        )
    at = torch.tensor([classes.index(name) for name in data.classes], device="cpu")
    labels = {split: at[codes] for split, codes in data.labels.items()}
    return replace(data, labels=labels, classes=classes)


def describe(data: Dataset) -> str:
    """What the data are, in one line."""
    what, how = "row", counted(data.size, "column")
    if data.image_shape is not None:
        what, how = "image", " × ".join(map(str, data.image_shape))
    counts = {split: len(getattr(data, split)) for split in SPLITS}
    parts = [f"{counted(sum(counts.values()), what)} of {how}", KINDS[data.values].label]
    if data.values == REAL:
        parts.append("standardised")
    if data.missing is not None:
        parts.append(f"{100 * data.share_missing:.3g} % missing")
    if data.streamed:
        parts.append("streamed")
    if data.labels is not None:
        labels = data.labels[_TRAIN]
        parts.append(f"labels of {counted(len(data.classes) or len(labels.unique()), 'class')}")
    pairs = zip(counts.values(), _FOR, strict=True)
    split = ", ".join(f"{count:,} {what_for}" for count, what_for in pairs)
    return f"{data.name}: {', '.join(parts)}; {split}"


# --- looking --------------------------------------------------------------------------------------


def _see(look: Look, raw: Raw, arrange: Callable[..., Any] | None, training: Any) -> None:
    """All values seen, and none of them infinite, or NaN where that is none."""
    for name, part in raw.parts.items():
        look.hash(name, part.shape, part.dtype.str)
        mask = np.zeros(len(part), bool)
        if name == _TRAIN:
            mask[slice(None) if training is None else training] = True
        for rows, block in _seen(part):
            if part.stays:
                look.hash(block)
            look.see(int(rows[0]), block if arrange is None else arrange(block), mask[rows])
            if look.bad is not None:
                _refuse_missing(raw, look, block.shape[1:])
        if raw.labels is not None:
            look.hash(raw.labels[name])


def _seen(part: Source) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """(rows, examples) of all; of a set that may be another at each reading, of some."""
    if part.stays:
        for first, block in blocks(part):
            yield np.arange(first, first + len(block)), block
        return
    some = np.unique(np.linspace(0, len(part) - 1, min(len(part), _LOOKED_AT)).astype(np.int64))
    for rows in np.array_split(some, -(-len(some) // 256)):
        yield rows, part.read(rows)


def _refuse_missing(raw: Raw, look: Look, shape: tuple[int, ...]) -> None:
    assert look.bad is not None
    row, place, value = look.bad
    how = ""
    if math.isnan(value):
        how = '; --missing nan (missing="nan" in Python) takes NaN for what is missing'
    raise ValueError(
        f"values must be finite numbers, got {value:g} {_place(raw, row, place, shape)}{how}"
    )


def _check_known(look: Look, raw: Raw, shape: tuple[int, ...]) -> None:
    """Raise ValueError if nothing is known, or of a table's column in training."""
    known = np.broadcast_to(look.counts, math.prod(shape)) > 0
    if not known.any():
        raise ValueError("values must be numbers in training, got NaN alone")
    if len(shape) == 1 and not known.all():
        column = int(np.flatnonzero(~known)[0])
        name = repr(raw.columns[column]) if raw.columns else column
        raise ValueError(
            f"values must be numbers in a row of the training at least, got NaN alone in column "
            f"{name}: leave it out"
        )


def _mean_of_all(look: Look) -> NDArray[np.float64]:
    """The mean of each value; of a pixel that is never known, that of the others."""
    known = np.broadcast_to(look.counts, look.mean.shape) > 0
    return look.mean if known.all() else np.where(known, look.mean, look.mean[known].mean())


def _place(raw: Raw, row: int, place: int, shape: tuple[int, ...]) -> str:
    if len(shape) == 1 and raw.columns:
        return f"in row {row + 1}, column {raw.columns[place]!r}"
    at = ", ".join(str(int(i)) for i in np.unravel_index(place, shape))
    return f"in example {row}, at {at}"


def _scaling(look: Look, kind: str, divisor: float, *, is_table: bool) -> Scaling:
    """Real numbers are standardised: each column of a table, or all pixels of images alike."""
    if kind != REAL:
        return Scaling.by(divisor)
    mean, variance = look.mean, look.variance
    if not is_table:
        weights = np.broadcast_to(look.counts, mean.shape)
        whole = np.average(mean, weights=weights, keepdims=True)
        variance = np.average(variance + np.square(mean - whole), weights=weights, keepdims=True)
        mean = whole
    if not np.isfinite(variance).all():
        raise ValueError(
            f"real values must be so small that their squares are finite, got values from "
            f"{look.low:g} to {look.high:g}"
        )
    deviation = np.sqrt(variance)
    # Of a column that is constant in training, up to rounding, nothing is known of the scale.
    constant = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-300)
    return Scaling(mean, np.where(constant, 1.0, deviation))


def array_raw(name: str, arrays: dict[str, Any], **more: Any) -> Raw:
    """Of arrays in memory."""
    return Raw(name, {split: ArraySource(array) for split, array in arrays.items()}, **more)
