"""The data sets by name: split, binarised, read by index."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast._checks import check_choice
from dvae_fast._extras import require
from dvae_fast.data.downloads import (
    BINARISED_BASES,
    BINARISED_FILES,
    FOLDER_VARIABLE,
    MNIST_BASES,
    MNIST_FILES,
    absent_file,
    download,
    local_file,
    read_amat,
    read_idx,
    read_npz,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dvae_fast.data.downloads import Images

__all__ = [
    "BINARISATIONS",
    "DATASETS",
    "SPLITS",
    "Binarisation",
    "Dataset",
    "NamedSet",
    "check_binarise",
    "evenly_spaced",
    "load_dataset",
]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Binarisation:
    """A way to make grey values binary, and what messages call the data.

    Attributes:
        anew: drawn anew in every epoch; drawn once for validation and test.
        once: drawn once, when the data are loaded.
        published: drawn by others, in a file of its own.
        likelihood: what suits the values.
    """

    label: str
    anew: bool = False
    once: bool = False
    published: bool = False
    likelihood: str = "bernoulli"

    @property
    def grey(self) -> bool:
        """Whether the values stay as they are."""
        return not (self.anew or self.once or self.published)


BINARISATIONS = {
    "dynamic": Binarisation("dynamic binarisation", anew=True),
    "once": Binarisation("once binarisation", once=True),
    "fixed": Binarisation("fixed binarisation", published=True),
    "none": Binarisation("grey values", likelihood="gaussian"),
}


# --- Bernoulli draws --------------------------------------------------------------------------


_BLOCK = 256  # examples a call: bounds the memory of the reference; part of what a draw depends on


def _bernoulli(probability: Tensor, seed: Tensor, example: int = 0) -> Tensor:
    """One draw for each element of `probability` (any shape, float32), 0.0 or 1.0.

    Salt and pepper at rate 1 is 1 with probability `salt` and 0 otherwise, exactly at 0 and 1.
    Its kernel draws and compares in one pass, several times faster than torch's generator can
    make the uniforms alone.
    """
    flat = probability.reshape(-1)
    draw = torch.ops.dvae_fast.corrupt(
        flat.view(1, -1), "salt_and_pepper", flat.new_ones(1), flat, seed, 1, example, 0
    )
    return cast("Tensor", draw.view(probability.shape))


def _fixed_draw(grey: Tensor, seed: int, split: str) -> Tensor:
    """The draw of a whole split, a function of (seed, split, index, pixel) alone."""
    key = torch.tensor([seed], dtype=torch.int64, device=grey.device)
    first = SPLITS.index(split) << 20
    blocks = [_bernoulli(b, key, first + i) for i, b in enumerate(torch.split(grey, _BLOCK))]
    return torch.cat(blocks)


# --- the data set -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images in memory.

    Attributes:
        name: one of :data:`DATASETS`.
        train, valid, test: float32 (N, D) in [0, 1], D = height · width, row by row. Grey for
            ``dynamic`` and ``none``, 0 or 1 for ``once`` and ``fixed``.
        image_shape: (height, width).
        binarise: one of :data:`BINARISATIONS`.
        seed: the one that governs the split and the fixed draws.
        mean: (D,), the mean of the training images.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    image_shape: tuple[int, int]
    binarise: str
    seed: int
    mean: Tensor
    _drawn: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def size(self) -> int:
        """D, the number of pixels."""
        return self.train.shape[1]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data with the training images, which alone are read often, on `device`."""
        return replace(self, train=self.train.to(device))

    def first(self, train: int | None, valid: int | None) -> Dataset:
        """The same with the first so many training and validation images; all where None."""
        if train is None and valid is None:
            return self
        images = self.train[:train]
        mean = images.mean(0, dtype=torch.float64).float()
        return replace(self, train=images, valid=self.valid[:valid], mean=mean)

    def train_batch(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Training examples by index: (B,) int64 → (B, D); ``dynamic`` draws from `generator`."""
        grey = self.train.index_select(0, index.to(self.train.device, non_blocking=True))
        if not BINARISATIONS[self.binarise].anew:
            return grey
        # The generator gives the seed and the kernel the noise: one number drawn, not B·D.
        seed = torch.randint(0, 2**63 - 1, (1,), generator=generator, device=generator.device)
        return _bernoulli(grey, seed.to(grey.device, non_blocking=True))

    def evaluation(self, split: str) -> Tensor:
        """The tensor to evaluate a model on, (N, D); the same at every call.

        Raises:
            ValueError: if `split` is not one of :data:`SPLITS`.
        """
        check_choice("split", split, SPLITS)
        images = cast("Tensor", getattr(self, split))
        if not BINARISATIONS[self.binarise].anew:
            return images
        if split not in self._drawn:
            with torch.inference_mode(False):  # kept for whoever wants a gradient later
                self._drawn[split] = _fixed_draw(images, self.seed, split)
        return self._drawn[split]


def evenly_spaced(x: Tensor, n: int) -> Tensor:
    """n of the rows of x, from the first on: of a set sorted by class, as many of each."""
    return x[torch.arange(n) * len(x) // n]


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
        seed: governs the split (digits, frey) and the fixed draws; runs that are to be compared
            share it. At least 0 and below 2**32.
        folder: where mnist.npz, binarized_mnist.npz and frey_face.npz lie. Default: the
            environment variable DVAE_FAST_DATA. MNIST is downloaded if it is not there.

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
        parts, highest = named.published(where), 1
    else:
        parts, highest = named.grey(where, seed), named.highest
    tensors = []
    for split, part in zip(SPLITS, parts, strict=True):
        images = torch.from_numpy(part.reshape(len(part), -1).astype(np.float32)).div_(highest)
        tensors.append(_fixed_draw(images, seed, split) if way.once else images)
    mean = tensors[0].mean(0, dtype=torch.float64).float()
    train, valid, test = tensors
    return Dataset(name, train, valid, test, named.image_shape, binarise, seed, mean)


def _permuted(images: Images, counts: tuple[int, int, int], seed: int) -> tuple[Images, ...]:
    # The legacy generator, because its stream is frozen: the split of a seed never changes.
    order = np.random.RandomState(seed).permutation(len(images))
    assert len(images) == sum(counts)
    return tuple(images[i] for i in np.split(order, np.cumsum(counts)[:-1]))


# --- files ------------------------------------------------------------------------------------


def _digits(folder: Path | None, seed: int) -> tuple[Images, ...]:
    datasets = require("sklearn.datasets", "scikit-learn", "the data set 'digits'")
    return _permuted(datasets.load_digits().images.astype(np.uint8), (1297, 200, 300), seed)


def _split_mnist(folder: Path | None, seed: int) -> tuple[Images, ...]:
    sixty, ten = _mnist(folder)
    return sixty[:50000], sixty[50000:], ten


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


def _frey(folder: Path | None, seed: int) -> tuple[Images, ...]:
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


@dataclass(frozen=True)
class NamedSet:
    """A data set of the registry, and what suits it.

    Attributes:
        grey: (folder, seed) to the three splits' images, whole numbers from 0 to `highest`.
        image_shape: (height, width).
        published: folder to the splits of a draw that others published, where there is one.
        binarise: one of :data:`BINARISATIONS`.
        epochs, learning_rate: of a training.
    """

    grey: Callable[[Path | None, int], tuple[Images, ...]]
    image_shape: tuple[int, int]
    highest: int
    epochs: int
    learning_rate: float
    binarise: str = "dynamic"
    published: Callable[[Path | None], tuple[Images, ...]] | None = None

    @property
    def grey_levels(self) -> bool:
        """Whether grey values are multiples of 1/255."""
        return self.highest == 255


# An epoch of the digits is 13 steps, one of MNIST 500.
DATASETS = {
    "digits": NamedSet(_digits, (8, 8), 16, 300, 3e-3),
    "mnist": NamedSet(_split_mnist, (28, 28), 255, 100, 1e-3, published=_fixed_mnist),
    "frey": NamedSet(_frey, (28, 20), 255, 300, 1e-3, "none"),
}
