"""Stopping what reports its progress."""

from __future__ import annotations


class StopAfter:
    """A report that interrupts when it has been called so often."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, _: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
