"""A lock that one process holds at a time, and that its death frees."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from dvae_fast.files import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # no POSIX
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]

_BUSY = (BlockingIOError, PermissionError)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Hold the lock of the file `path` within the block; the file is gone afterwards.

    The system frees it when the process ends, however it ends. Where the file system has no locks,
    a warning says so; where the file cannot be made, nothing does: whoever writes there will.

    Args:
        path: in a folder, which is made if it is not there.
        what: "another training", say, for the message.

    Raises:
        CheckpointError: if another holds it, in this process or any other.
    """
    path = Path(path)
    descriptor = _open(path) if fcntl is not None else None
    if descriptor is None:
        yield
        return
    try:
        holder = _take(descriptor, path)
        while holder is None and not _is_at(descriptor, path):
            # Whoever held it removed the file between our opening and locking it.
            os.close(descriptor)
            descriptor = _open(path)
            if descriptor is None:
                break
            holder = _take(descriptor, path)
        if holder is not None:
            raise CheckpointError(
                f"{path.parent} is in use: {what} is under way in it{holder}; wait for it, or name "
                "another folder"
            )
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if descriptor is not None and _is_at(descriptor, path):
                    path.unlink()
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    return None


def _take(descriptor: int, path: Path) -> str | None:
    """None if the lock is ours, or there are no locks; else who has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _BUSY:
        with contextlib.suppress(OSError):
            said = os.read(descriptor, 200).decode(errors="replace").strip()
            return f" (process {said})" if said else ""
        return ""
    except OSError as error:
        warnings.warn(
            f"{path.parent} cannot be locked ({error.strerror or error}): see to it that nothing "
            "else writes there",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        here, there = os.fstat(descriptor), path.stat()
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
