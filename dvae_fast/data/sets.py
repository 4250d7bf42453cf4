"""The data sets by name: split, binarised, read by index."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from dvae_fast._checks import check_choice
from dvae_fast._extras import require
from dvae_fast.data import fetched
from dvae_fast.data.dataset import BINARISATIONS, SPLITS, Dataset, fixed_draw
from dvae_fast.data.downloads import (
    BINARISED_BASES,
    BINARISED_FILES,
    FOLDER_VARIABLE,
    MNIST_BASES,
    MNIST_FILES,
    DataError,
    absent_file,
    download,
    local_file,
    read_amat,
    read_idx,
    read_npz,
)
from dvae_fast.data.examples import Scaling
from dvae_fast.data.kinds import BINARY, GREY, LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from dvae_fast.data.downloads import Images

__all__ = ["DATASETS", "NamedSet", "check_binarise", "load_dataset"]


class Parts(NamedTuple):
    """Images of train, valid and test, and their labels where there are any."""

    images: Sequence[Images]
    labels: Sequence[NDArray[Any]] | None = None


def check_binarise(data: str, binarise: str) -> None:
    """Raise ValueError unless the data set `data` can be had so."""
    check_choice("binarise", binarise, BINARISATIONS)
    if BINARISATIONS[binarise].published and DATASETS[data].published is None:
        others = ", ".join(n for n, way in BINARISATIONS.items() if not way.published)
        have = ", ".join(n for n, named in DATASETS.items() if named.published is not None)
        raise ValueError(
            f"binarise must be one of {others} for {data} ({binarise} exists for {have} alone); "
            f"got {binarise!r}"
        )


def load_dataset(
    name: str,
    *,
    binarise: str = "dynamic",
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load a data set into memory.

    Args:
        name: one of :data:`DATASETS`.
        binarise: one of :data:`BINARISATIONS`; ``fixed`` exists for mnist alone.
        seed: governs the split (digits, frey, omniglot) and the fixed draws; runs that are to be
            compared share it. At least 0 and below 2**32.
        folder: where mnist.npz, binarized_mnist.npz, frey_face.npz, omniglot.npz,
            fashion_mnist.npz and caltech101_silhouettes.npz lie. Default: the environment variable
            DVAE_FAST_DATA. All but Frey Face are downloaded where they are not there.

    Raises:
        ValueError: if an argument is none of the valid ones.
        DataError: if a file is absent and cannot be downloaded, or is not what it should be.
        MissingExtraError: if scikit-learn, which brings the digits, is not installed.
    """
    check_choice("name", name, DATASETS)
    check_binarise(name, binarise)
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an int from 0 to 2**32 - 1, got {seed!r}")
    seed = int(seed)
    # Tensors of inference mode could be used in no graph; those of another device in no batch.
    with torch.inference_mode(False), torch.device("cpu"):
        return _load(name, binarise, seed, folder)


def _load(name: str, binarise: str, seed: int, folder: str | os.PathLike[str] | None) -> Dataset:
    chosen = folder if folder is not None else os.environ.get(FOLDER_VARIABLE) or None
    where = None if chosen is None else Path(chosen).expanduser()

    named, way = DATASETS[name], BINARISATIONS[binarise]
    if way.published and named.published is not None:
        parts, highest, values = Parts(named.published(where)), 1, BINARY
    else:
        parts, highest, values = named.grey(where, seed), named.highest, named.values
    tensors = []
    for split, part in zip(SPLITS, parts.images, strict=True):
        rows = part.reshape(len(part), -1).astype(np.float32, order="C")
        images = torch.from_numpy(rows).div_(highest)
        tensors.append(fixed_draw(images, seed, split) if way.once else images)
    mean = tensors[0].mean(0, dtype=torch.float64).float()
    train, valid, test = tensors
    labels = None
    if parts.labels is not None:
        codes = (torch.from_numpy(np.array(part, np.int64)) for part in parts.labels)
        labels = dict(zip(SPLITS, codes, strict=True))
    return Dataset(
        name, train, valid, test, named.image_shape, binarise, seed, mean, values, labels,
        scaling=Scaling.by(highest),
    )  # fmt: skip


def _permuted(
    images: Images, counts: Sequence[int], seed: int, labels: NDArray[Any] | None = None
) -> Parts:
    # The legacy generator, because its stream is frozen: the split of a seed never changes.
    order = np.random.RandomState(seed).permutation(len(images))
    assert len(images) == sum(counts)
    cut = np.split(order, np.cumsum(counts)[:-1])
    return Parts([images[i] for i in cut], None if labels is None else [labels[i] for i in cut])


# --- files ------------------------------------------------------------------------------------


def _digits(folder: Path | None, seed: int) -> Parts:
    digits = require("sklearn.datasets", "scikit-learn", "the data set 'digits'").load_digits()
    return _permuted(digits.images.astype(np.uint8), (1297, 200, 300), seed, digits.target)


def _split_mnist(folder: Path | None, seed: int) -> Parts:
    sixty, ten = _mnist(folder)
    labels = None
    # Labels are for who asks for them; the images do without.
    with contextlib.suppress(DataError):
        of_sixty, of_ten = _mnist_labels(folder)
        labels = (of_sixty[:50000], of_sixty[50000:], of_ten)
    return Parts((sixty[:50000], sixty[50000:], ten), labels)


def _mnist_labels(folder: Path | None) -> Sequence[Images]:
    path = local_file(folder, "mnist.npz")
    if path is None:
        return download(folder, "mnist.npz", fetched.MNIST_LABELS, MNIST_BASES, read_idx, "")
    arrays = read_npz(path, {"train_labels": (60000,), "test_labels": (10000,)})
    return arrays["train_labels"], arrays["test_labels"]


def _mnist(folder: Path | None) -> tuple[Images, Images]:
    path = local_file(folder, "mnist.npz")
    if path is None:
        more = (
            " It is an .npz file with uint8 arrays 'train_images' of shape (60000, 28, 28) and "
            "'test_images' of shape (10000, 28, 28)."
        )
        train, test = download(folder, "mnist.npz", MNIST_FILES, MNIST_BASES, read_idx, more)
        return train, test
    arrays = read_npz(path, {"train_images": (60000, 28, 28), "test_images": (10000, 28, 28)})
    return arrays["train_images"], arrays["test_images"]


def _fixed_mnist(folder: Path | None) -> tuple[Images, ...]:
    name = "binarized_mnist.npz"
    path = local_file(folder, name)
    if path is None:
        more = (
            " It is an .npz file with arrays 'train', 'valid' and 'test' of 50000, 10000 and 10000 "
            "rows of 98 bytes, eight pixels in each (numpy.packbits)."
        )
        files, bases = BINARISED_FILES, BINARISED_BASES
        return tuple(download(folder, name, files, bases, read_amat, more))
    counts = {"train": 50000, "valid": 10000, "test": 10000}
    arrays = read_npz(path, {key: (count, 98) for key, count in counts.items()})
    return tuple(np.unpackbits(arrays[key], axis=1) for key in counts)


def _frey(folder: Path | None, seed: int) -> Parts:
    path = local_file(folder, "frey_face.npz")
    if path is None:
        raise absent_file(
            folder,
            "frey_face.npz",
            "it has no download with a published checksum",
            " It is an .npz file with one uint8 array 'images' of shape (1965, 28, 20).",
        )
    images = read_npz(path, {"images": (1965, 28, 20)})["images"]
    return _permuted(images, (1572, 193, 200), seed)


def _omniglot(folder: Path | None, seed: int) -> Parts:
    """Drawers 1 to 15 of each character, of whom 1,345 images validate; 16 to 20 are the test."""
    (images, characters), (test, of_test) = fetched.omniglot(folder)
    train = _permuted(images, (23000, len(images) - 23000), seed, characters)
    assert train.labels is not None
    return Parts((*train.images, test), (*train.labels, of_test))


def _fashion_mnist(folder: Path | None, seed: int) -> Parts:
    sixty, of_sixty, ten, of_ten = fetched.fashion_mnist(folder)
    return Parts((sixty[:50000], sixty[50000:], ten), (of_sixty[:50000], of_sixty[50000:], of_ten))


def _silhouettes(folder: Path | None, seed: int) -> Parts:
    return Parts(*fetched.silhouettes(folder))


@dataclass(frozen=True)
class NamedSet:
    """A data set of the registry, and what suits it.

    Attributes:
        grey: (folder, seed) to the three splits' images, whole numbers from 0 to `highest`.
        values: what they are over `highest`, one of :data:`KINDS`.
        image_shape: (height, width).
        published: folder to the splits of a draw that others published, where there is one.
        binarise: one of :data:`BINARISATIONS`.
        epochs, learning_rate: of a training.
    """

    grey: Callable[[Path | None, int], Parts]
    image_shape: tuple[int, int]
    highest: int
    values: str
    epochs: int
    learning_rate: float
    binarise: str = "dynamic"
    published: Callable[[Path | None], tuple[Images, ...]] | None = None


# An epoch of the digits is 13 steps, one of MNIST 500.
DATASETS = {
    "digits": NamedSet(_digits, (8, 8), 16, GREY, 300, 3e-3),
    "mnist": NamedSet(_split_mnist, (28, 28), 255, LEVELS, 100, 1e-3, published=_fixed_mnist),
    "frey": NamedSet(_frey, (28, 20), 255, LEVELS, 300, 1e-3, "none"),
    "omniglot": NamedSet(_omniglot, (28, 28), 255, LEVELS, 100, 1e-3),
    "fashion_mnist": NamedSet(_fashion_mnist, (28, 28), 255, LEVELS, 100, 1e-3),
    "caltech101_silhouettes": NamedSet(_silhouettes, (28, 28), 1, BINARY, 300, 1e-3, "none"),
}
