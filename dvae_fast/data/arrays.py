"""Arrays of one's own: in memory, of torch's data sets, in ``.npy`` and ``.npz`` files."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

from dvae_fast.data.dataset import SPLITS
from dvae_fast.data.downloads import DAMAGE, DataError
from dvae_fast.data.given import given_from
from dvae_fast.data.own import Raw, array_raw, is_split, label_codes
from dvae_fast.data.sources import (
    ArraySource,
    FileSource,
    NpySource,
    Source,
    SparseSource,
    npy_header,
)
from dvae_fast.files import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dvae_fast.data.sources import Index

__all__ = ["NPY", "raw_arrays", "read_npy", "read_npy_folder", "read_npz_file"]

_TRAIN = SPLITS[0]
NPY = ".npy"


# --- in Python ------------------------------------------------------------------------------------


def raw_arrays(parts: Mapping[str, Any], labels: Any, name: str) -> Raw:
    """What `Dataset.from_arrays` is given."""
    given = {split: part for split, part in parts.items() if part is not None}
    if _TRAIN not in given:
        raise TypeError(f"{_TRAIN} must be an array, got None")
    sources: dict[str, Source] = {}
    found: dict[str, Any] = {}
    for split, part in given.items():
        sources[split], of_part = _source(split, part)
        if of_part is not None:
            found[split] = of_part
    if labels is not None:
        found = dict(labels) if isinstance(labels, Mapping) else {_TRAIN: labels}
        if unknown := found.keys() - sources.keys():
            raise ValueError(
                f"labels must be of {', '.join(sources)}, got some of {sorted(unknown)[0]!r}"
            )
    codes, classes = _codes(found)
    return Raw(name, sources, codes, classes)


def _codes(found: Mapping[str, Any]) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Labels of each split; names are numbered together."""
    if not found:
        return None, ()
    made = {split: label_codes(labels) for split, labels in found.items()}
    classes = sorted({name for _, names in made.values() for name in names})
    if not classes:
        return {split: codes for split, (codes, _) in made.items()}, ()
    if not all(names for _, names in made.values()):
        raise ValueError("labels must be whole numbers or strings, the same in every split")
    number = {name: i for i, name in enumerate(classes)}
    return {
        split: np.array([number[name] for name in names], np.int64)[codes]
        for split, (codes, names) in made.items()
    }, tuple(classes)


def _source(split: str, part: Any) -> tuple[Source, Any]:
    """(examples, their labels or None)."""
    if isinstance(part, (TorchDataset, DataLoader)):
        return _of_torch(split, part)
    if isinstance(part, np.memmap) and part.filename is not None and _is_whole(part):
        order = "C" if part.flags.c_contiguous else "F"
        path = Path(part.filename)
        return FileSource(path, part.dtype, part.shape, order, part.offset), None
    if isinstance(part, Tensor):
        if part.layout is not torch.strided:
            raise TypeError(f"{split} must be a dense tensor, got {part.layout}")
        part = part.detach().cpu()
        return ArraySource((part.float() if part.dtype == torch.bfloat16 else part).numpy()), None
    if hasattr(part, "tocsr"):
        return SparseSource(part), None
    if isinstance(part, (str, bytes, Mapping)) or not hasattr(part, "__len__"):
        raise TypeError(
            f"{split} must be an array, a tensor, a sparse matrix or one of torch's data sets, got "
            f"{type(part).__name__}"
        )
    try:
        return ArraySource(np.asarray(part)), None
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"{split} must be an array: {one_line(error)}") from None


def _is_whole(part: Any) -> bool:
    """Whether it is all of what was mapped, not a view of some, and lies there without gaps."""
    gapless = part.flags.c_contiguous or part.flags.f_contiguous
    return gapless and not isinstance(part.base, np.ndarray)


class _TorchSource(Source):
    """A data set of torch that is read by index, a batch at a time."""

    stays = False

    def __init__(self, dataset: Any, collate: Any, first: NDArray[Any]) -> None:
        self._dataset, self._collate = dataset, collate
        self.shape, self.dtype = (len(dataset), *first.shape[1:]), first.dtype

    def read(self, rows: Index) -> NDArray[Any]:
        index = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows.tolist()
        items = [self._dataset[i] for i in index]
        if not items:
            return np.empty((0, *self.shape[1:]), self.dtype)
        return _values(_batch(items, self._collate))


def _batch(items: list[Any], collate: Any) -> Any:
    if collate is not None:
        return collate(items)
    return torch.utils.data.default_collate(items)


def _values(batch: Any) -> NDArray[Any]:
    """x of a batch, which may have labels beside it."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(x, Tensor):
        raise TypeError(
            f"a torch data set must give x or (x, label), of numbers; got {type(x).__name__}"
        )
    return np.asarray(x.detach().cpu())


def _labels(batch: Any) -> Any:
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def _of_torch(split: str, given: Any) -> tuple[Source, Any]:
    """Read by index where it can be; else read once, into memory.

    Of a loader its data set and how it makes a batch are taken: order, size and number of workers
    are the trainer's own.
    """
    data: Any = given
    collate = None
    if isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset):
        data, collate = given.dataset, given.collate_fn
    if isinstance(data, (IterableDataset, DataLoader)) or not isinstance(data, Sized):
        return _read_through(split, data)
    return _by_index(split, data, collate)


def _by_index(split: str, data: Any, collate: Any) -> tuple[Source, Any]:
    if len(data) < 1:
        raise ValueError(f"{split} must hold examples, got none")
    batch = _batch([data[0]], collate)
    source = _TorchSource(data, collate, _values(batch))
    targets = _targets(data)
    if targets is None and _labels(batch) is not None:
        targets = [_label(_batch([data[i]], collate)) for i in range(len(data))]
    return source, targets


def _targets(data: Any) -> Any:
    """The labels that torchvision's sets and `TensorDataset` hold, without reading examples."""
    if isinstance(data, torch.utils.data.TensorDataset):
        return data.tensors[1] if len(data.tensors) > 1 else None
    targets = getattr(data, "targets", None)
    if isinstance(targets, (list, tuple, np.ndarray, Tensor)) and len(targets) == len(data):
        return targets
    return None


def _label(batch: Any) -> Any:
    label = _labels(batch)
    if isinstance(label, Tensor):
        return label.reshape(-1)[0].item()
    return label[0] if isinstance(label, (list, tuple)) else label


def _read_through(split: str, data: Any) -> tuple[Source, Any]:
    x, labels = given_from(data, wants_context=True, name=split)
    return ArraySource(x.detach().cpu().numpy()), labels


# --- files ----------------------------------------------------------------------------------------


def read_npy(path: Path) -> Raw:
    """One array, read a batch at a time where it is large."""
    return Raw(path.stem, {_TRAIN: _npy(path)})


def _npy(path: Path) -> Source:
    try:
        return NpySource(path)
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read as an .npy file: {one_line(error)}") from None


def read_npy_folder(folder: Path) -> Raw:
    """``train.npy``, and perhaps ``valid.npy``, ``test.npy`` and ``train_labels.npy``, …"""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == NPY)
    roles = _roles([path.stem for path in files], str(folder))
    by_stem = {path.stem: path for path in files}
    parts = {split: _npy(by_stem[stem]) for split, stem in roles[_DATA].items()}
    found = {}
    for split, stem in roles[_LABELS].items():
        source = _npy(by_stem[stem])
        found[split] = source.read(slice(0, len(source)))
    codes, classes = _codes(found)
    return Raw(folder.name, parts, codes, classes)


def read_npz_file(path: Path, labels: str | None = None) -> Raw:
    """One array, or one for each split; and labels where there are any.

    Args:
        path: the file.
        labels: the array that holds the labels, where its name does not say so.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = [n.removesuffix(NPY) for n in file.namelist() if n.endswith(NPY)]
            if labels is not None and labels not in names:
                raise DataError(f"{path} must hold an array {labels!r}, got {', '.join(names)}")
            roles = _roles([name for name in names if name != labels], str(path))
            if labels is not None:
                roles[_LABELS] = {_TRAIN: labels}
            # Before anything is unpacked: a header may ask for more than there is.
            for name in (*roles[_DATA].values(), *roles[_LABELS].values()):
                info = file.getinfo(f"{name}{NPY}")
                with file.open(info) as entry:
                    npy_header(entry, info.file_size, f"array {name!r}")
        with np.load(path, allow_pickle=False) as arrays:
            parts = {split: arrays[key] for split, key in roles[_DATA].items()}
            found = {split: arrays[key] for split, key in roles[_LABELS].items()}
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read as an .npz file: {one_line(error)}") from None
    codes, classes = _codes(found)
    return array_raw(path.stem, parts, labels=codes, classes=classes)


_DATA, _LABELS = "data", "labels"
_DATA_WORDS = {"x", "data", "images", "image", "features", "arr", "0", "examples", "inputs"}
_LABEL_WORDS = {"y", "label", "labels", "target", "targets", "classes"}


def _roles(names: list[str], where: str) -> dict[str, dict[str, str]]:
    """{"data": {split: name}, "labels": {split: name}} of arrays called so.

    ``train``, ``x_train``, ``train_images``, ``y``, ``train_labels``, …; one array alone may be
    called anything, and others are left out.
    """
    roles: dict[str, dict[str, str]] = {_DATA: {}, _LABELS: {}}
    for name in names:
        words = name.lower().replace("-", "_").split("_")
        splits = {split for word in words if (split := is_split(word))}
        rest = {word for word in words if not is_split(word)}
        role = _DATA if rest <= _DATA_WORDS else _LABELS if rest <= _LABEL_WORDS else None
        if role is None or len(splits) > 1:
            continue
        split = next(iter(splits), _TRAIN)
        if split in roles[role]:
            raise DataError(
                f"{where} must hold one array of {role} for {split}, got "
                f"{roles[role][split]!r} and {name!r}"
            )
        roles[role][split] = name
    if not roles[_DATA]:
        others = [name for name in names if name not in roles[_LABELS].values()]
        if len(others) == 1:
            roles[_DATA][_TRAIN] = others[0]
    if _TRAIN not in roles[_DATA]:
        listed = ", ".join(names) or "none"
        raise DataError(
            f"{where} must hold one array, or arrays called {', '.join(SPLITS)}; got {listed}"
        )
    return roles
