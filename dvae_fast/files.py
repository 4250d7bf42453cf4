"""Files of a run: written whole or not at all, tensors in safetensors, the rest in JSON, no pickle.

``checkpoint.safetensors`` holds all a run needs to go on, ``model.safetensors`` the best model
alone. Each carries its JSON part in the safetensors header, so that numbers and tensors can
never come from two different moments, and the SHA-256 of all its bytes, so that damage is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dvae_fast._extras import require

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CHECKPOINT",
    "CheckpointError",
    "Stored",
    "can_write_in",
    "load_tensors",
    "one_line",
    "read_json",
    "read_tensors",
    "save_tensors",
    "sweep_temporaries",
    "write_atomically",
    "write_json",
]

CHECKPOINT = "checkpoint.safetensors"
_HEADER = "dvae_fast"


class CheckpointError(RuntimeError):
    """A file cannot be written or read; the message names it, the reason and what is intact."""


_MOST_SAID = 300


def one_line(error: BaseException | str) -> str:
    """What an error says, in one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MOST_SAID else f"{text[: _MOST_SAID - 2]} …"


# --- writing --------------------------------------------------------------------------------------


def write_atomically(path: str | os.PathLike[str], data: bytes | bytearray) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one.

    Raises:
        CheckpointError: if it cannot be written, for want of space or permission, say. What
            stood at `path` is then intact, and no temporary file is left.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, because a rename is atomic only within one file system.
        # Its name says whose it is, so that what a killed process leaves is told from what is
        # being written.
        prefix = f".{path.name}.{_host()}.{os.getpid()}."
        descriptor, temporary = tempfile.mkstemp(prefix=prefix, dir=path.parent)
        _being_written.add(temporary)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _being_written.discard(temporary)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        intact = "; the earlier file is intact" if path.is_file() else ""
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}{intact}") from None
    finally:
        if temporary is not None:
            _being_written.discard(temporary)
            with contextlib.suppress(OSError):
                os.unlink(temporary)


#: the temporary files of this process
_being_written: set[str] = set()
_TEMPORARY = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<process>[0-9]+)\.[a-z0-9_]{8}")
#: as earlier versions named them
_UNNAMED = re.compile(r"\..+\.(safetensors|json|npz|png)\.[a-z0-9_]{8}")
#: after which a temporary file of another machine is nobody's: no file takes that long to write
_LONGEST_WRITE = 24 * 3600.0


def _host() -> str:
    return re.sub("[^A-Za-z0-9-]", "-", socket.gethostname())[:40] or "-"


def sweep_temporaries(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files in `folder` of processes that are no more; never an error."""
    with contextlib.suppress(OSError):
        for path in Path(folder).iterdir():
            with contextlib.suppress(OSError):
                if _is_abandoned(path):
                    path.unlink()


def _is_abandoned(path: Path) -> bool:
    named = _TEMPORARY.fullmatch(path.name)
    if named is None:
        return _UNNAMED.fullmatch(path.name) is not None and path.is_file()
    if named["host"] != _host():
        return time.time() - path.stat().st_mtime > _LONGEST_WRITE
    process = int(named["process"])
    if process == os.getpid():  # or of one before this that had its number, as in a container
        return str(path) not in _being_written
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's
        return False
    return False


def can_write_in(folder: str | os.PathLike[str]) -> bool:
    """Whether a file can be made in `folder`, which is made if it is not there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _umask() -> int:
    # mkstemp makes files private, whatever the umask; reading the umask means setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; not every file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- JSON -----------------------------------------------------------------------------------------


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON, atomically. Raises as :func:`write_atomically`."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file.

    Raises:
        CheckpointError: if it is absent, unreadable or not JSON.
    """
    try:
        return json.loads(_read_file(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a JSON file: {one_line(error)}") from None


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except MemoryError:
        raise CheckpointError(f"cannot read {path}: it does not fit into memory") from None


# --- tensors --------------------------------------------------------------------------------------

# The header is {"digest": …, "header": …}; the digest is that of the file with zeros in its place.
_DIGEST, _CONTENT = "digest", "header"
_BLANK = "0" * hashlib.sha256().digest_size * 2
#: how safetensors' own header, JSON too, begins that string
_BEFORE_DIGEST = f'"{_HEADER}":' + json.dumps(json.dumps({_DIGEST: ""})[:-2])[:-1]


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> str:
    """Write tensors and a JSON-able header as one safetensors file, atomically; its digest.

    Raises:
        CheckpointError: if the file cannot be written.
        MissingExtraError: if safetensors is not installed.
    """
    safetensors = require("safetensors.torch", "safetensors", "saving a run")
    # Parts of one storage would be refused; a copy of each is what the file holds anyway.
    whole = {name: t.detach().clone(memory_format=torch.contiguous_format)
             for name, t in tensors.items()}  # fmt: skip
    text = json.dumps({_DIGEST: _BLANK, _CONTENT: header})
    data = bytearray(safetensors.save(whole, {_HEADER: text}))
    start = _digest_at(data)
    digest = hashlib.sha256(data).hexdigest()
    data[start : start + len(_BLANK)] = digest.encode()
    write_atomically(path, data)
    return digest


class Stored(NamedTuple):
    """What a file of :func:`save_tensors` holds.

    `digest` is its SHA-256 with zeros in the digest's own place: the same for the same content.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any]
    digest: str


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header of a file of :func:`save_tensors`, on the CPU.

    Raises:
        CheckpointError: if the file is absent, damaged or of another kind.
        MissingExtraError: if safetensors is not installed.
    """
    stored = read_tensors(path)
    return stored.tensors, stored.header


def read_tensors(path: str | os.PathLike[str]) -> Stored:
    """As :func:`load_tensors`, with the digest. A file without one is read, with a warning."""
    safetensors = require("safetensors", "safetensors", "reading a run")
    parse = require("safetensors.torch", "safetensors", "reading a run").load
    if not Path(path).is_file():
        raise CheckpointError(f"cannot read {path}: there is no such file")
    data = _read_file(path)  # once: the file may be replaced while it is read
    if data[:4] in _FOREIGN or data[:2] == b"\x80\x02":
        raise CheckpointError(
            f"{path} is a file of torch.save, not of dvae_fast: read it with torch.load, and "
            "save a model with dvae_fast.models.save_model"
        )
    try:
        text = _metadata(data)[_HEADER]
        header = json.loads(text)
    except KeyError:
        raise CheckpointError(f"{path} was not written by dvae_fast: it has no header") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is {type(header).__name__}")
    if {_DIGEST, _CONTENT} & header.keys():
        digest, content = _digest(data), header.get(_CONTENT)
        if digest is None or header.get(_DIGEST) != digest or not isinstance(content, dict):
            raise CheckpointError(
                f"{path} is damaged: it does not hold what was written (its SHA-256 is another)"
            )
    else:
        digest, content = hashlib.sha256(data).hexdigest(), header
        warnings.warn(
            f"{path} has no digest, being of an earlier version: damage in it would not be found",
            RuntimeWarning,
            stacklevel=3,
        )
    try:
        with torch.device("cpu"):
            return Stored(parse(data), content, digest)
    except (
        AssertionError, KeyError, MemoryError, RuntimeError, TypeError, ValueError,
        safetensors.SafetensorError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{path} is damaged: {one_line(error)}") from None


#: how a zip file begins, which torch.save writes
_FOREIGN = (b"PK\x03\x04", b"PK\x05\x06")


def _json_part(data: bytes | bytearray) -> tuple[int, int]:
    """Where safetensors' own header stands: its length comes first."""
    return 8, 8 + int.from_bytes(data[:8], "little")


def _metadata(data: bytes) -> dict[str, str]:
    """What safetensors keeps beside the tensors. ValueError if there is no header."""
    start, stop = _json_part(data)
    if len(data) < stop:
        raise ValueError(f"its header ends beyond its {len(data)} bytes")
    parsed = json.loads(data[start:stop])
    found = parsed.get("__metadata__", {}) if isinstance(parsed, dict) else {}
    if not isinstance(found, dict):
        raise ValueError("its metadata is no dictionary")
    return found


def _digest_at(data: bytes | bytearray) -> int:
    start, stop = _json_part(data)
    found = data.find(_BEFORE_DIGEST.encode(), start, stop)
    return found + len(_BEFORE_DIGEST) if found >= 0 else -1


def _digest(data: bytes) -> str | None:
    """Of the bytes with zeros in the place of the digest; None if it has no place."""
    start = _digest_at(data)
    if start < 0:
        return None
    whole, view = hashlib.sha256(), memoryview(data)
    for part in (view[:start], _BLANK.encode(), view[start + len(_BLANK) :]):
        whole.update(part)
    return whole.hexdigest()
