"""OMNIGLOT, Fashion-MNIST and the Caltech-101 silhouettes: their files, and where to get them."""

from __future__ import annotations

import re
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from dvae_fast._extras import require
from dvae_fast.data.downloads import (
    DAMAGE,
    DataError,
    download,
    local_file,
    read_idx,
    read_npz,
)
from dvae_fast.files import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dvae_fast.data.downloads import Images

    Labels = NDArray[Any]

__all__ = ["MNIST_LABELS", "fashion_mnist", "omniglot", "silhouettes"]

MNIST_LABELS = {
    "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
}

# --- Fashion-MNIST --------------------------------------------------------------------------------

_FASHION = "fashion_mnist.npz"
#: the checksum is what is trusted: without encryption the second serves as well
_FASHION_BASES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
#: in the cache under a name of their own: those of MNIST are called the same
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}


def fashion_mnist(folder: Path | None) -> list[Images]:
    """Images and labels of the 60,000, images and labels of the 10,000.

    Source: Xiao, Rasul and Vollgraf (arXiv 1708.07747).
    """
    path = local_file(folder, _FASHION)
    if path is None:
        more = (
            " It is an .npz file with uint8 arrays 'train_images' of shape (60000, 28, 28), "
            "'train_labels' (60000,), 'test_images' (10000, 28, 28) and 'test_labels' (10000,)."
        )
        return download(
            folder, _FASHION, _FASHION_FILES, _FASHION_BASES, read_idx, more, prefix="fashion-"
        )
    shapes = {
        "train_images": (60000, 28, 28), "train_labels": (60000,),
        "test_images": (10000, 28, 28), "test_labels": (10000,),
    }  # fmt: skip
    arrays = read_npz(path, shapes)
    return [arrays[name] for name in shapes]


# --- OMNIGLOT -------------------------------------------------------------------------------------

_OMNIGLOT = "omniglot.npz"
_OMNIGLOT_BASES = ("https://github.com/brendenlake/omniglot/raw/master/python/",)
_OMNIGLOT_FILES = {
    "images_background.zip": "md5:68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "md5:6b91aef0f799c5bb55b94e3f2daec811",
}
_CHARACTERS, _DRAWERS, _TRAINING_DRAWERS = 1623, 20, 15
_SIDE = 28


def omniglot(folder: Path | None) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """(images, character 0, 1, …) of drawers 1 to 15, and of 16 to 20; ink is 255.

    The 105 × 105 drawings, averaged over areas to 28 × 28. Not the ``chardata.mat`` of Burda et
    al., which was made smaller and split in another way: published numbers of nats cannot be
    compared.

    Source: Lake, Salakhutdinov and Tenenbaum, Science 350 (2015).
    """
    path = local_file(folder, _OMNIGLOT)
    if path is not None:
        counts = (_CHARACTERS * _TRAINING_DRAWERS, _CHARACTERS * (_DRAWERS - _TRAINING_DRAWERS))
        names = ("train_images", "test_images")
        shapes = {name: (n, _SIDE, _SIDE) for name, n in zip(names, counts, strict=True)}
        arrays = read_npz(path, shapes)
        # By character, then by drawer.
        train, test = (np.arange(n) // (n // _CHARACTERS) for n in counts)
        return (arrays[names[0]], train), (arrays[names[1]], test)
    more = (
        f" It is an .npz file with uint8 arrays 'train_images' of shape "
        f"({_CHARACTERS * _TRAINING_DRAWERS}, 28, 28) and 'test_images' of shape "
        f"({_CHARACTERS * (_DRAWERS - _TRAINING_DRAWERS)}, 28, 28), by character, then by drawer."
    )
    drawn = np.concatenate(
        download(folder, _OMNIGLOT, _OMNIGLOT_FILES, _OMNIGLOT_BASES, _drawings, more)
    )
    character = np.arange(len(drawn))[:, None].repeat(_DRAWERS, 1)
    cut = _TRAINING_DRAWERS
    parts = (drawn[:, :cut], character[:, :cut]), (drawn[:, cut:], character[:, cut:])
    first, second = ((x.reshape(-1, _SIDE, _SIDE), y.reshape(-1)) for x, y in parts)
    return first, second


_DRAWING = re.compile(r"[^/]+/(?P<character>[^/]+/[^/]+)/[0-9]+_(?P<drawer>[0-9]+)\.png")


def _drawings(path: Path) -> Images:
    """(characters, drawers, 28, 28) of a zip of black drawings on white."""
    pil: Any = require("PIL.Image", "Pillow", "the data set 'omniglot'")
    characters: dict[str, dict[int, Images]] = {}
    try:
        with zipfile.ZipFile(path) as file:
            for name in sorted(file.namelist()):
                if found := _DRAWING.fullmatch(name):
                    with file.open(name) as entry, pil.open(entry) as image:
                        small = image.convert("L").resize((_SIDE, _SIDE), pil.Resampling.BOX)
                    drawer = int(found["drawer"])
                    characters.setdefault(found["character"], {})[drawer] = 255 - np.asarray(small)
    except DAMAGE as error:
        raise DataError(f"{path} cannot be read as a zip of drawings: {one_line(error)}") from None
    if not characters or any(len(by) != _DRAWERS for by in characters.values()):
        raise DataError(f"{path} must hold {_DRAWERS} drawings of each character, and does not")
    return np.stack([np.stack([by[d] for d in sorted(by)]) for by in characters.values()])


# --- Caltech-101 silhouettes ----------------------------------------------------------------------

_SILHOUETTES = "caltech101_silhouettes.npz"
_SILHOUETTES_BASES = ("https://people.cs.umass.edu/~marlin/data/",)
_SILHOUETTES_FILES = {
    "caltech101_silhouettes_28_split1.mat": "md5:4483e9c14b188fd09937f9ea6f9ea777",
}
_SILHOUETTES_COUNTS = {"train": 4100, "valid": 2264, "test": 2307}


def silhouettes(folder: Path | None) -> tuple[list[Images], list[Images]]:
    """Images of 0 and 1, the object's 1, of train, valid and test; and their classes, from 0 on.

    Source: Marlin, Swersky, Chen and de Freitas, "Inductive principles for restricted Boltzmann
    machine learning" (AISTATS 2010).
    """
    path = local_file(folder, _SILHOUETTES)
    if path is None:
        more = (
            " It is an .npz file with uint8 arrays 'train_images', 'valid_images' and "
            "'test_images' of 0 and 1, 4100, 2264 and 2307 of 28 × 28, and 'train_labels', …."
        )
        files, bases = _SILHOUETTES_FILES, _SILHOUETTES_BASES
        ((images, labels),) = download(folder, _SILHOUETTES, files, bases, _read_mat, more)
        return images, labels
    shapes: dict[str, tuple[int, ...]] = {}
    for split, count in _SILHOUETTES_COUNTS.items():
        shapes[f"{split}_images"] = (count, _SIDE, _SIDE)
        shapes[f"{split}_labels"] = (count,)
    arrays = read_npz(path, shapes)
    return (
        [arrays[f"{split}_images"] for split in _SILHOUETTES_COUNTS],
        [arrays[f"{split}_labels"] for split in _SILHOUETTES_COUNTS],
    )


def _read_mat(path: Path) -> tuple[list[Images], list[Images]]:
    """Of the published file, in which the object is 0, and images lie column by column."""
    scipy: Any = require("scipy.io", "scipy", "the data set 'caltech101_silhouettes'")
    images, labels = [], []
    try:
        content = scipy.loadmat(path)
        for split in ("train", "val", "test"):
            x = np.asarray(content[f"{split}_data"]).reshape(-1, _SIDE, _SIDE)
            images.append(1 - x.swapaxes(1, 2).astype(np.uint8))
            labels.append(np.asarray(content[f"{split}_labels"]).reshape(-1).astype(np.uint8) - 1)
    except (*DAMAGE, KeyError) as error:
        raise DataError(f"{path} cannot be read as silhouettes: {one_line(error)}") from None
    return images, labels
