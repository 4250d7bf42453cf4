"""Signals, and when to report, save and stop."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from dvae_fast.distributed import World, all_max

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["REPORT_SECONDS", "Pace", "Signals"]

REPORT_SECONDS = 0.2


class Signals:
    """Turns the first SIGINT or SIGTERM into a flag, so that no step is cut in half.

    A second one interrupts at once. Outside the main thread, where no handler may be set, only
    a callback's KeyboardInterrupt can stop the run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
        self.old = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            self.__exit__()
            raise KeyboardInterrupt
        self.received = number

    def call(self, callback: Callable[[Any], None] | None, value: Any) -> None:
        """Call back between two steps, where a KeyboardInterrupt is as good as a signal."""
        if callback is None:
            return
        try:
            callback(value)
        except KeyboardInterrupt:
            self.received = self.received or signal.SIGINT


_MOST_STEPS = 1000


class Pace:
    """When to report, save and stop: by rank 0's clock and any rank's signal, at one step for all.

    Several processes agree a few times a second; at every step it would cost as much as a small
    step does.
    """

    def __init__(self, world: World, signals: Signals) -> None:
        self.world, self.signals = world, signals
        self._stop: int | None = None
        self._steps, self._left = 0, 1  # since they last agreed, and until they will again
        self._since = time.perf_counter()

    @property
    def stop(self) -> int | None:
        """The signal at which all ranks stop."""
        return self.signals.received if self.world.size == 1 else self._stop

    def agree(self, *flags: bool) -> list[bool]:
        """Rank 0's flags, after every rank has heard of every other's signal."""
        if self.world.size == 1:
            return list(flags)
        now = time.perf_counter()
        wanted = REPORT_SECONDS / 2 * self._steps / max(now - self._since, 1e-9)
        own = (*flags, max(1, min(int(wanted), _MOST_STEPS)))
        mine = own if self.world.is_main else [0] * len(own)
        number, *told, self._left = all_max([self.signals.received or 0, *mine], self.world)
        self._stop = number or None
        self._steps, self._since = 0, now
        return [bool(flag) for flag in told]

    def after_step(self, *flags: bool) -> list[bool]:
        """`agree`, if this is a step to do so; else no flag is set."""
        if self.world.size > 1:
            self._steps += 1
            if self._steps < self._left:
                return [False] * len(flags)
        return self.agree(*flags)
