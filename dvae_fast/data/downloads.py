"""Files of the data sets: found in a folder, fetched, and read."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dvae_fast._extras import MissingExtraError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

__all__ = [
    "BINARISED_BASES",
    "BINARISED_FILES",
    "FOLDER_VARIABLE",
    "MNIST_BASES",
    "MNIST_FILES",
    "DataError",
    "Images",
    "absent_file",
    "download",
    "local_file",
    "read_amat",
    "read_idx",
    "read_npz",
]

#: environment variable that names the folder with mnist.npz, binarized_mnist.npz, frey_face.npz
FOLDER_VARIABLE = "DVAE_FAST_DATA"


class DataError(RuntimeError):
    """A data file is absent or not what it should be; the message says which, and what to do."""


def read_npz(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Images]:
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


def local_file(folder: Path | None, name: str) -> Path | None:
    if folder is None or not (folder / name).is_file():
        return None
    return folder / name


def absent_file(folder: Path | None, name: str, reason: str, more: str = "") -> DataError:
    if folder is None:
        looked = f"{FOLDER_VARIABLE} is not set"
        advice = f"Put {name} into a folder and set {FOLDER_VARIABLE} to that folder."
    else:
        looked = f"{folder} does not hold it" if folder.is_dir() else f"{folder} is no folder"
        advice = f"Put {name} there, or set {FOLDER_VARIABLE} to the folder that holds it."
    return DataError(f"{name} was not found: {looked}, and {reason}. {advice}{more}")


MNIST_BASES = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
}
BINARISED_BASES = ("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",)
BINARISED_FILES = {
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


def download(
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
        raise absent_file(folder, name, str(error), more) from None
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
            raise absent_file(folder, name, reason, more)
    return arrays


def _reason(error: Exception) -> str:
    """In a few words: a failed connection is told as five nested exceptions."""
    if type(error).__name__ in ("ConnectionError", "ConnectTimeout", "ReadTimeout"):
        return "no connection"
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def read_idx(path: Path) -> Images:
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


def read_amat(path: Path) -> Images:
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
