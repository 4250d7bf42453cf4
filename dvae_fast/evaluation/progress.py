"""How far an evaluation is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["EvaluationProgress", "Meter"]


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
