"""Data sets of small grey images, held in memory and read by index.

==========  =======  ====================  =======================================================
name        size     train/valid/test      source
==========  =======  ====================  =======================================================
digits      8×8      1297 / 200 / 300      scikit-learn's bundled digits, values / 16
mnist       28×28    50000 / 10000 / 10000 MNIST, values / 255; or its fixed binarisation
frey        28×20    1572 / 193 / 200      Frey Face, values / 255
==========  =======  ====================  =======================================================

(height × width.) MNIST is split in its own order: the last 10,000 training images are for
validation. Digits and Frey Face have no split of their own: a permutation that depends on the
seed alone is cut in three, so that the parts never overlap. Frey Face is a video, and neighbouring
frames are nearly the same: its test set judges how well the model knows this one film.

Binarisation, which decides what the model is given:

- ``dynamic``: every time an image is read for training, each pixel is a new Bernoulli draw with
  the grey value as its probability: augmentation by sampling from the input;
- ``once``: one such draw for each image, made when the data set is loaded;
- ``fixed``: the published draw of Larochelle and Murray (AISTATS 2011), for MNIST alone;
- ``none``: the grey values.

Validation and test sets are fixed in every case: ``dynamic`` and ``once`` use one draw that
depends on the seed alone.
"""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast._extras import MissingExtraError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

__all__ = [
    "BINARISATIONS",
    "DATASETS",
    "FOLDER_VARIABLE",
    "GREY_LEVEL_DATASETS",
    "IMAGE_SHAPES",
    "SPLITS",
    "DataError",
    "Dataset",
    "evenly_spaced",
    "load_dataset",
]

#: (height, width) of each data set's images
IMAGE_SHAPES = {"digits": (8, 8), "mnist": (28, 28), "frey": (28, 20)}
DATASETS = tuple(IMAGE_SHAPES)
BINARISATIONS = ("dynamic", "once", "fixed", "none")
#: Data sets whose grey values are multiples of 1/255.
GREY_LEVEL_DATASETS = ("mnist", "frey")
SPLITS = ("train", "valid", "test")
#: environment variable that names the folder with mnist.npz, binarized_mnist.npz, frey_face.npz
FOLDER_VARIABLE = "DVAE_FAST_DATA"


class DataError(RuntimeError):
    """A data file is absent or not what it should be; the message says which, and what to do."""


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
    key = torch.tensor([seed], dtype=torch.int64)
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
        if self.binarise != "dynamic":
            return grey
        # The generator gives the seed and the kernel the noise: one number drawn, not B·D.
        seed = torch.randint(0, 2**63 - 1, (1,), generator=generator)
        return _bernoulli(grey, seed.to(grey.device, non_blocking=True))

    def evaluation(self, split: str) -> Tensor:
        """The tensor to judge a model on, (N, D); the same at every call.

        Raises:
            ValueError: if `split` is not one of :data:`SPLITS`.
        """
        _check_choice("split", split, SPLITS)
        images = cast("Tensor", getattr(self, split))
        if self.binarise != "dynamic":
            return images
        if split not in self._drawn:
            self._drawn[split] = _fixed_draw(images, self.seed, split)
        return self._drawn[split]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def evenly_spaced(x: Tensor, n: int) -> Tensor:
    """n of the rows of x, from the first on: of a set sorted by class, as many of each."""
    return x[torch.arange(n) * len(x) // n]


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
    _check_choice("name", name, DATASETS)
    _check_choice("binarise", binarise, BINARISATIONS)
    if binarise == "fixed" and name != "mnist":
        others = ", ".join(b for b in BINARISATIONS if b != "fixed")
        raise ValueError(
            f"binarise must be one of {others} for {name} (fixed exists for mnist alone); "
            "got 'fixed'"
        )
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an int from 0 to 2**32 - 1, got {seed!r}")
    chosen = folder if folder is not None else os.environ.get(FOLDER_VARIABLE) or None
    where = None if chosen is None else Path(chosen).expanduser()

    if name == "digits":
        parts, highest = _permuted(_digits(), (1297, 200, 300), seed), 16
    elif name == "frey":
        parts, highest = _permuted(_frey(where), (1572, 193, 200), seed), 255
    elif binarise == "fixed":
        parts, highest = _fixed_mnist(where), 1
    else:
        sixty, ten = _mnist(where)
        parts, highest = (sixty[:50000], sixty[50000:], ten), 255

    shape = IMAGE_SHAPES[name]
    size = shape[0] * shape[1]
    tensors = []
    for split, part in zip(SPLITS, parts, strict=True):
        images = torch.from_numpy(part.reshape(-1, size).astype(np.float32)).div_(highest)
        tensors.append(_fixed_draw(images, seed, split) if binarise == "once" else images)
    mean = tensors[0].mean(0, dtype=torch.float64).float()
    train, valid, test = tensors
    return Dataset(name, train, valid, test, shape, binarise, seed, mean)


def _permuted(images: Images, counts: tuple[int, int, int], seed: int) -> tuple[Images, ...]:
    # The legacy generator, because its stream is frozen: the split of a seed never changes.
    order = np.random.RandomState(seed).permutation(len(images))
    assert len(images) == sum(counts)
    return tuple(images[i] for i in np.split(order, np.cumsum(counts)[:-1]))


# --- files ------------------------------------------------------------------------------------


def _digits() -> Images:
    datasets = require("sklearn.datasets", "scikit-learn", "the data set 'digits'")
    return cast("Images", datasets.load_digits().images.astype(np.uint8))


def _read_npz(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Images]:
    """The named uint8 arrays of an .npz file, after checking that they are there and fit."""
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in shapes if key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz file: {error}") from None
    for key, shape in shapes.items():
        if key not in arrays:
            raise DataError(f"{path} must hold an array {key!r}, and does not")
        if arrays[key].shape != shape or arrays[key].dtype != np.uint8:
            raise DataError(
                f"{path}: array {key!r} must be uint8 of shape {shape}, "
                f"got {arrays[key].dtype} of shape {arrays[key].shape}"
            )
    return arrays


def _mnist(folder: Path | None) -> tuple[Images, Images]:
    path = _local(folder, "mnist.npz")
    if path is None:
        more = (
            " It is an .npz file with uint8 arrays 'train_images' of shape (60000, 28, 28) and "
            "'test_images' of shape (10000, 28, 28)."
        )
        train, test = _download(folder, "mnist.npz", _MNIST_FILES, _MNIST_BASES, _read_idx, more)
        return train, test
    arrays = _read_npz(path, {"train_images": (60000, 28, 28), "test_images": (10000, 28, 28)})
    return arrays["train_images"], arrays["test_images"]


def _fixed_mnist(folder: Path | None) -> tuple[Images, ...]:
    name = "binarized_mnist.npz"
    path = _local(folder, name)
    if path is None:
        more = (
            " It is an .npz file with arrays 'train', 'valid' and 'test' of 50000, 10000 and 10000 "
            "rows of 98 bytes, eight pixels in each (numpy.packbits)."
        )
        files, bases = _BINARISED_FILES, _BINARISED_BASES
        return tuple(_download(folder, name, files, bases, _read_amat, more))
    counts = {"train": 50000, "valid": 10000, "test": 10000}
    arrays = _read_npz(path, {key: (count, 98) for key, count in counts.items()})
    return tuple(np.unpackbits(arrays[key], axis=1) for key in counts)


def _frey(folder: Path | None) -> Images:
    path = _local(folder, "frey_face.npz")
    if path is None:
        raise _absent(
            folder,
            "frey_face.npz",
            "it has no download with a published checksum",
            " It is an .npz file with one uint8 array 'images' of shape (1965, 28, 20).",
        )
    return _read_npz(path, {"images": (1965, 28, 20)})["images"]


def _local(folder: Path | None, name: str) -> Path | None:
    if folder is None or not (folder / name).is_file():
        return None
    return folder / name


def _absent(folder: Path | None, name: str, reason: str, more: str = "") -> DataError:
    if folder is None:
        looked = f"{FOLDER_VARIABLE} is not set"
        advice = f"Put {name} into a folder and set {FOLDER_VARIABLE} to that folder."
    else:
        looked = f"{folder} does not hold it" if folder.is_dir() else f"{folder} is no folder"
        advice = f"Put {name} there, or set {FOLDER_VARIABLE} to the folder that holds it."
    return DataError(f"{name} was not found: {looked}, and {reason}. {advice}{more}")


# --- downloads --------------------------------------------------------------------------------

_MNIST_BASES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
}
_BINARISED_BASES = ("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",)
_BINARISED_FILES = {
    "binarized_mnist_train.amat": (
        "sha256:ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"
    ),
    "binarized_mnist_valid.amat": (
        "sha256:1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"
    ),
    "binarized_mnist_test.amat": (
        "sha256:e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"
    ),
}


def _download(
    folder: Path | None,
    name: str,
    files: Mapping[str, str],
    bases: tuple[str, ...],
    read: Callable[[Path], Images],
    more: str,
) -> list[Images]:
    """The arrays of `files`, from pooch's cache or the first of `bases` that serves them."""
    try:
        pooch = require("pooch", "pooch", "downloading")
    except MissingExtraError as error:
        raise _absent(folder, name, str(error), more) from None
    cache = pooch.os_cache("dvae_fast")
    arrays = []
    for file, checksum in files.items():
        reason = ""
        for base in bases:
            try:
                path = pooch.retrieve(base + file, checksum, fname=file, path=cache)
            except (OSError, ValueError) as error:  # no network; checksum; cache not writable
                reason = reason or f"{base + file} could not be fetched ({_reason(error)})"
                continue
            arrays.append(read(Path(path)))
            break
        else:
            raise _absent(folder, name, reason, more)
    return arrays


def _reason(error: Exception) -> str:
    """In a few words: a failed connection is told as five nested exceptions."""
    if type(error).__name__ in ("ConnectionError", "ConnectTimeout", "ReadTimeout"):
        return "no connection"
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def _read_idx(path: Path) -> Images:
    """A gzipped idx file of unsigned bytes: 0, 0, type 8, rank, the dimensions, the values."""
    try:
        with gzip.open(path) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a gzip file: {error}") from None
    rank = data[3] if len(data) > 3 else 0
    start = 4 + 4 * rank
    if data[:3] != b"\0\0\x08" or len(data) < start:
        raise DataError(f"{path} is not an idx file of unsigned bytes")
    shape = struct.unpack(f">{rank}I", data[4:start])
    values = np.frombuffer(data, np.uint8, offset=start)
    if values.size != np.prod(shape):
        raise DataError(
            f"{path} must hold {np.prod(shape)} values, as its header says, got {values.size}"
        )
    return values.reshape(shape)


def _read_amat(path: Path) -> Images:
    """A text file of 0 and 1, 784 a line, separated by spaces: (N, 784)."""
    text = np.fromfile(path, np.uint8)
    digit = (text == ord("0")) | (text == ord("1"))
    if not (digit | np.isin(text, np.frombuffer(b" \r\n\t", np.uint8))).all():
        raise DataError(f"{path} must hold the numbers 0 and 1 alone, separated by spaces")
    values = text[digit] - np.uint8(ord("0"))
    if values.size == 0 or values.size % 784:
        raise DataError(f"{path} must hold lines of 784 numbers, got {values.size} numbers")
    images: Images = values.reshape(-1, 784)
    return images
