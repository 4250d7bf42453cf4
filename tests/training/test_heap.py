"""Freed memory goes back to the system, where the C library can do that."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

import pytest

from dvae_fast.training import heap
from dvae_fast.training.heap import _trim

BLOCK, COUNT = 100_000, 2_000  # below 128 KiB, from which blocks have mappings of their own


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="not Linux with glibc"
)
def test_holes_in_the_heap_are_given_back() -> None:
    """Every second block is freed: the heap cannot shrink from its end."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(COUNT)]
    try:
        for block in blocks:
            ctypes.memset(block, 1, BLOCK)
        for block in blocks[::2]:
            libc.free(block)
        before = _resident()
        heap.return_free_memory()
        assert before - _resident() > COUNT * BLOCK // 4
        assert all(ctypes.string_at(block, 1) == b"\x01" for block in blocks[1::2])
    finally:
        for block in blocks[1::2]:
            libc.free(block)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    _trim.cache_clear()
    try:
        heap.return_free_memory()
    finally:
        _trim.cache_clear()
