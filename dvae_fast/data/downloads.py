"""Files of the data sets: found in a folder, fetched, and read."""

from __future__ import annotations

import gzip
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dvae_fast._extras import MissingExtraError, require
from dvae_fast.files import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Images = NDArray[np.uint8]

T = TypeVar("T")

__all__ = [
    "BINARISED_BASES",
    "BINARISED_FILES",
    "DAMAGE",
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

#: environment variable that names the folder with mnist.npz, frey_face.npz and the like
FOLDER_VARIABLE = "DVAE_FAST_DATA"


class DataError(RuntimeError):
    """A data file is absent or not what it should be; the message says which, and what to do."""


# What zipfile and numpy raise of a file that is damaged, encrypted, or another kind of file.
DAMAGE = (
    OSError, ValueError, EOFError, NotImplementedError, RuntimeError, SyntaxError, MemoryError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def read_npz(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Images]:
    """The named uint8 arrays of an .npz file, after checking that they are there and fit.

    Headers first: an array that is not what it should be is never unpacked.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = set(file.namelist())
            for key in shapes:
                if f"{key}.npy" not in names:
                    raise DataError(f"{path} must hold an array {key!r}, and does not")
            return {key: _read_array(path, file, key, shape) for key, shape in shapes.items()}
    except DataError:
        raise
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read as an .npz file: {one_line(error)}") from None


def _read_array(path: Path, file: zipfile.ZipFile, key: str, shape: tuple[int, ...]) -> Images:
    with file.open(f"{key}.npy") as entry:
        version = np.lib.format.read_magic(entry)
        if version > (2, 0):  # for names of fields beyond Latin-1, which bytes have none of
            raise ValueError(f"array {key!r} is of npy version {version}")
        read = np.lib.format.read_array_header_1_0
        if version == (2, 0):
            read = np.lib.format.read_array_header_2_0
        found, fortran, dtype = read(entry)
        if dtype.hasobject:
            raise ValueError(f"array {key!r} holds Python objects, which are not loaded")
        if found != shape or dtype != np.uint8:
            raise DataError(
                f"{path}: array {key!r} must be uint8 of shape {shape}, got {dtype} of shape "
                f"{one_line(str(found))}"
            )
        size = math.prod(shape)
        data = entry.read(size)
        # The end is read too, which is where the checksum is looked at.
        if len(data) < size or entry.read(1):
            raise ValueError(f"array {key!r} does not hold {size} bytes")
    values = np.frombuffer(data, np.uint8)
    return values.reshape(shape, order="F" if fortran else "C")


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
#: the checksum is what is trusted: without encryption the second serves as well
BINARISED_BASES = tuple(
    f"{scheme}://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
    for scheme in ("https", "http")
)
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
    read: Callable[[Path], T],
    more: str,
    *,
    prefix: str = "",
) -> list[T]:
    """What `read` makes of `files`, from pooch's cache or the first of `bases` that serves them.

    `prefix`: of their names in the cache, where those of two sets would be the same.
    """
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
                path = pooch.retrieve(base + file, checksum, fname=prefix + file, path=cache)
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


#: as many as the largest idx file of a known checksum, and more
_MOST_VALUES = 2**28


def read_idx(path: Path) -> Images:
    """A gzipped idx file of unsigned bytes: 0, 0, type 8, rank, the dimensions, the values."""
    try:
        with gzip.open(path) as file:
            start = file.read(4)
            rank = start[3] if len(start) > 3 else 0
            dimensions = file.read(4 * rank)
            if start[:3] != b"\0\0\x08" or not 0 < rank < 9 or len(dimensions) < 4 * rank:
                raise DataError(f"{path} is not an idx file of unsigned bytes")
            shape = struct.unpack(f">{rank}I", dimensions)
            size = math.prod(shape)
            # As many as the header says, and one to see that there are no more.
            data = file.read(min(size, _MOST_VALUES) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a gzip file: {one_line(error)}") from None
    if len(data) != size:
        got = f"got {len(data)}" if len(data) <= min(size, _MOST_VALUES) else "it holds more"
        raise DataError(f"{path} must hold {size} values, as its header says; {got}")
    return np.frombuffer(data, np.uint8).reshape(shape)


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
