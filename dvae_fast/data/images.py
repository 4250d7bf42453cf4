"""A folder of images, read by Pillow."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from dvae_fast._extras import require
from dvae_fast.data.downloads import DataError
from dvae_fast.data.own import Raw, array_raw, class_codes, is_split
from dvae_fast.files import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["check_size_text", "has_images", "read_images"]

_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
)
#: Pillow's modes of images without colours; those of 16 bits begin with I
_GREY = frozenset(("1", "L", "LA", "I", "I;16", "I;16B", "I;16L"))
_TRAIN = "train"


def check_size_text(size: Any) -> tuple[int, int]:
    """(height, width) of "32" or "48x64", of an int or a pair.

    Raises:
        ValueError: if it is none of those.
    """
    parts = str(size).lower().split("x") if isinstance(size, (str, int)) else list(size)
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ValueError(
            "size must be one number or HEIGHTxWIDTH, of 1 or more, such as 32 or 48x64; "
            f"got {size!r}"
        )
    return numbers[0], numbers[-1]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def has_images(folder: Path) -> bool:
    """Whether there is one in it, or in a folder of it."""
    return any(_is_image(path) and path.is_file() for path in folder.rglob("*"))


def read_images(folder: Path, size: str | None = None, grey: bool = False) -> Raw:
    """All images below `folder` as bytes, (N, 1, H, W) or (N, 3, H, W) if one has colours.

    Folders in it are classes; those called train, valid and test are the splits, which may hold
    classes.

    Args:
        folder: there.
        size: see `check_size_text`: images are cropped about their middle to that shape, and
            resized. Default: as they are, which must be of one size.
        grey: make all grey.
    """
    pil: Any = require("PIL.Image", "Pillow", "reading images")
    found = _files(folder)
    paths = [path for part in found.values() for path in part]
    modes = [_header(pil, path) for path in paths]
    wanted = None if size is None else check_size_text(size)
    if wanted is None:
        wanted = modes[0][1]
        for path, (_, shape) in zip(paths, modes, strict=True):
            if shape != wanted:
                raise DataError(
                    f"images must be of one size, or be given one by --size: {paths[0]} is "
                    f"{wanted[0]} × {wanted[1]}, {path} {shape[0]} × {shape[1]} (height × width)"
                )
    grey = grey or all(mode in _GREY for mode, _ in modes)
    parts = {name: _read(pil, files, wanted, grey) for name, files in found.items()}
    every = [_class(folder, name, path) for name, files in found.items() for path in files]
    codes: Any = None
    classes: tuple[str, ...] = ()
    if any(every):
        if not all(every):
            path = paths[every.index("")]
            raise DataError(
                f"{folder} must hold images or folders of images, and holds both: {path} is in no "
                "folder of a class"
            )
        numbers, classes = class_codes(every)
        codes, first = {}, 0
        for name, files in found.items():
            codes[name] = numbers[first : first + len(files)]
            first += len(files)
    return array_raw(folder.name, parts, labels=codes, classes=classes)


def _files(folder: Path) -> dict[str, list[Path]]:
    """Of each split, or of all as "train", in order of their names."""
    splits = {
        split: path
        for path in sorted(folder.iterdir())
        if path.is_dir() and (split := is_split(path.name)) and has_images(path)
    }
    if _TRAIN not in splits:
        splits = {_TRAIN: folder}
    return {
        split: sorted(p for p in path.rglob("*") if _is_image(p) and p.is_file())
        for split, path in splits.items()
    }


def _class(folder: Path, split: str, path: Path) -> str:
    """The first folder on the way to an image that is no split's; "" if there is none."""
    names = path.relative_to(folder).parts[:-1]
    if names and is_split(names[0]) == split:
        names = names[1:]
    return names[0] if names else ""


def _header(pil: Any, path: Path) -> tuple[str, tuple[int, int]]:
    with _reading(pil, path) as image:
        # Of a photograph taken sideways.
        sideways = image.getexif().get(_ORIENTATION, 1) >= 5
        return image.mode, image.size if sideways else image.size[::-1]


_ORIENTATION = 0x0112


@contextlib.contextmanager
def _reading(pil: Any, path: Path) -> Iterator[Any]:
    """The image, opened; whatever a decoder makes of damage is one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of one that is too large to be meant well
            with pil.open(path) as image:
                yield image
    except Exception as error:
        raise DataError(f"{path} cannot be read as an image: {one_line(error)}") from None


def _read(pil: Any, paths: list[Path], shape: tuple[int, int], grey: bool) -> NDArray[np.uint8]:
    operations = require("PIL.ImageOps", "Pillow", "reading images")
    images = np.empty((len(paths), 1 if grey else 3, *shape), np.uint8)
    for i, path in enumerate(paths):
        with _reading(pil, path) as image:
            upright = operations.exif_transpose(image)
            if upright.mode.startswith("I"):  # of 16 bits: the upper eight
                upper = np.asarray(upright) >> 8
                upright = pil.fromarray(upper.clip(0, 255).astype(np.uint8))
            upright = upright.convert("L" if grey else "RGB")
            if upright.size != shape[::-1]:
                upright = operations.fit(upright, shape[::-1], pil.Resampling.LANCZOS)
            pixels = np.asarray(upright)
        images[i] = pixels if grey else np.moveaxis(pixels, -1, 0)
    return images
