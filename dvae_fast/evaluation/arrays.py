"""Files of named arrays, ``.npz``, with a text of JSON beside them; read without trusting them."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tokenize
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dvae_fast.files import CheckpointError, write_atomically

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["read_arrays", "reading", "write_arrays"]

# What numpy, zipfile and json raise of a file that is damaged, or another kind of file
_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, NotImplementedError,
    RuntimeError, SyntaxError, MemoryError, OverflowError, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """A CheckpointError of one line where the file cannot be read, or does not hold `what`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except _DAMAGE as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, KeyError):
            why = f"it has no {error.args[0]}"
        raise CheckpointError(f"{path} does not hold {what}: {why}") from None


def _check_header(info: zipfile.ZipInfo, file: IO[bytes], text: str) -> None:
    """Raise ValueError unless it is an array of numbers, or the text, as large as it says: a
    header may ask for more memory than there is."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed")
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"{info.filename} is of version {version}")
    kinds = "U" if info.filename == f"{text}.npy" else "bfi"
    if dtype.kind not in kinds or dtype.hasobject:
        raise ValueError(f"{info.filename} holds {dtype}")
    if math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
        raise ValueError(f"{info.filename} is not as large as its header says")


def read_arrays(path: Path, text: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, and what the one called `text` holds.

    Raises:
        OSError: if the file cannot be read.
        ValueError, or what numpy, zipfile and json raise: if it holds something else.
    """
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                _check_header(info, member, text)
    content.seek(0)
    with np.load(content, allow_pickle=False) as file:
        arrays = dict(file)
    return arrays, dict(json.loads(str(arrays.pop(text))))


def write_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    text: str,
    about: Mapping[str, Any],
) -> None:
    """What `read_arrays` reads.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    file = io.BytesIO()
    named: dict[str, Any] = {**arrays, text: np.array(json.dumps(about))}
    np.savez(file, **named)
    write_atomically(path, file.getvalue())
