"""Memory that was freed but stays in the process."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["return_free_memory"]


@functools.cache
def _trim() -> Callable[[int], Any] | None:
    try:
        trim: Callable[[int], Any] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # no glibc
        return None
    return trim


def return_free_memory() -> None:
    """Give the heap's free pages back to the system, where the C library is glibc.

    Before 2.38 glibc often does not use freed blocks again for aligned ones, which is what torch
    asks for (sourceware.org/bugzilla/show_bug.cgi?id=14581): a training that needs 130 MB of heap
    can grow by 40 MB an epoch and end without memory. Takes a few milliseconds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
