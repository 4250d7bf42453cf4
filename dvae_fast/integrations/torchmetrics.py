"""The negative log-likelihood as a metric of torchmetrics, batch by batch and over processes::

    metric = ImportanceNLL(model, k=500)
    for x in loader:
        metric.update(x)
    metric.compute()  # nats per example

Importing it needs torchmetrics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dvae_fast import evaluation
from dvae_fast._checks import check_size
from dvae_fast.integrations import library

__all__ = ["ImportanceNLL"]

_torchmetrics: Any = library("torchmetrics", "torchmetrics", "1.0")
# Examples of a process: their indices in the noise do not meet those of another.
_SHARE = 1 << 40


class ImportanceNLL(_torchmetrics.Metric):  # type: ignore[misc]
    """−log p(x) in nats per example, by importance sampling; states add up over processes.

    The noise of an example depends on how many came before it in its process, so that no two share
    theirs. A NaN is not left out.

    Args:
        model: as for `dvae_fast.estimate_log_likelihood`.
        k: importance samples an example.
        seed: of the noise.
        options: others of `dvae_fast.estimate_log_likelihood`, and of a torchmetrics.Metric
            (``dist_sync_on_step``, …).
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    total: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, model: Any, k: int = 500, *, seed: int = 0, **options: Any) -> None:
        own = ("dist_sync_on_step", "process_group", "sync_on_compute", "compute_on_cpu")
        more = ("dist_sync_fn", "distributed_available_fn", "compute_with_cache")
        of_metric = {n: options.pop(n) for n in (*own, *more) if n in options}
        super().__init__(**of_metric)
        # Not as a module of this one: what is evaluated is not moved, saved or trained with it.
        object.__setattr__(self, "_evaluated", (model,))
        self.k, self.seed, self._options = check_size("k", k), seed, options
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        for name in ("total", "variance"):
            self.add_state(name, default=zero.clone(), dist_reduce_fx="sum")
        self.add_state("count", default=zero.long(), dist_reduce_fx="sum")

    def update(self, x: Any, **given: Any) -> None:
        """Evaluate a batch, (B, *shape); `given`: its context or mask."""
        (model,) = self._evaluated
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        estimate = evaluation.estimate_log_likelihood(
            model, x, self.k, seed=self.seed, first_example=rank * _SHARE + int(self.count),
            curve=(), **given, **self._options,
        )  # fmt: skip
        self.total += -estimate.log_likelihood.sum().to(self.total)
        self.variance += estimate.standard_error.square().sum().to(self.variance)
        self.count += len(estimate.log_likelihood)

    def compute(self) -> Tensor:
        """The mean over all examples seen."""
        return self.total / self.count

    @property
    def standard_error(self) -> Tensor:
        """Of what `compute` gives for this process's examples, over draws of the samples."""
        return self.variance.sqrt() / self.count
