"""How far an evaluation is, told on the way."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from dvae_fast._text import format_duration, format_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["EvaluationProgress", "Meter", "ProgressLine", "progress_callback"]


@dataclass(frozen=True)
class EvaluationProgress:
    """How far an evaluation is: of this process's share, if several share the work."""

    #: examples done, and to be done
    examples: int
    total: int
    #: importance samples, or annealed chains, drawn so far
    samples: int
    #: mean over the examples done in nats, and its standard error over draws of the samples
    log_likelihood: float
    standard_error: float


class ProgressLine:
    """A line of the standard error that says how far it is, written anew a few times a second;
    where that is no terminal, and no notebook, ten lines.

    Args:
        stream: where to write instead.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        # Of a notebook the stream is ipykernel's, which is none and shows a line written anew.
        own = type(self._stream).__module__.startswith("ipykernel")
        self._anew = own or (self._stream is not None and self._stream.isatty())
        self._start, self._told = time.monotonic(), -math.inf
        self._tenth = self._width = 0

    def __call__(self, state: EvaluationProgress) -> None:
        if self._stream is None:  # of a process without one
            return
        now, done = time.monotonic(), state.examples == state.total
        tenth = state.examples * _LINES // max(state.total, 1)
        due = now - self._told >= _SECONDS if self._anew else tenth > self._tenth
        if not (due or done):
            return
        self._told, self._tenth = now, tenth
        seconds = now - self._start
        left = seconds * (state.total - state.examples) / max(state.examples, 1)
        text = (
            f"{state.examples:,}/{state.total:,} examples   "
            f"log p(x) {format_number(state.log_likelihood)} ± "
            f"{format_number(state.standard_error, 3)} nats   "
            f"{f'in {format_duration(seconds)}' if done else f'{format_duration(left)} left'}"
        )
        shown = f"\r{text:<{self._width}}" if self._anew else text
        self._width = len(text)
        self._stream.write(shown + ("\n" if done or not self._anew else ""))
        self._stream.flush()


# Between two tellings, and how many lines where each stays.
_SECONDS, _LINES = 0.2, 10


def progress_callback(
    progress: bool | Callable[[EvaluationProgress], None] | None,
) -> Callable[[EvaluationProgress], None] | None:
    """What an evaluation tells: True is a `ProgressLine`, None or False nobody.

    Raises:
        TypeError: for anything else that cannot be called.
    """
    if progress is None or isinstance(progress, bool):
        return ProgressLine() if progress else None
    if not callable(progress):
        raise TypeError(
            "progress must be True, False or a function of an EvaluationProgress, got "
            f"{type(progress).__name__}"
        )
    return progress


class Meter:
    """Tells `callback` an `EvaluationProgress` after each batch.

    Args:
        total: examples to be done.
        callback: None to tell nobody.
    """

    def __init__(self, total: int, callback: Callable[[EvaluationProgress], None] | None) -> None:
        self._total, self._callback = total, callback
        self._examples = self._samples = 0
        self._sum = self._variance = 0.0

    def advance(self, log_likelihood: Tensor, standard_error: Tensor, samples: int) -> None:
        """A batch is done: its numbers (B,), and the samples it took in all."""
        if self._callback is None:
            return
        self._examples += len(log_likelihood)
        self._samples += samples
        self._sum += float(log_likelihood.sum())
        self._variance += float(standard_error.square().sum())
        n = self._examples
        self._callback(
            EvaluationProgress(
                n, self._total, self._samples, self._sum / n, self._variance**0.5 / n
            )
        )
