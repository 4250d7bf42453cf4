"""Lightning: log p of validation data at the end of each validation, as a callback::

    trainer = L.Trainer(callbacks=[EvaluateLikelihood(k=500, limit=200)])

It logs ``val_log_likelihood``, ``val_elbo``, ``val_ess`` and ``val_pareto_k``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dvae_fast import evaluation
from dvae_fast._checks import check_size
from dvae_fast.integrations import library

__all__ = ["EvaluateLikelihood"]

_lightning: Any = library("lightning.pytorch", "lightning", "2.0")


class EvaluateLikelihood(_lightning.Callback):  # type: ignore[misc]
    """Estimate log p(x) of validation data when a validation ends, and log its means.

    What is evaluated is the LightningModule's attribute ``model``, if it has one, else itself: as
    `dvae_fast.estimate_log_likelihood` takes it. Batches are x, or tuples (x, …). Each process
    evaluates its own batches; means are over processes.

    Args:
        k: importance samples an example.
        limit: examples at most, in each process; None for all.
        every: validations, of which the last is followed by an evaluation.
        seed: of the noise; the same at each validation, so that curves have no noise of their own.
        prefix: of what is logged.
        options: others of `dvae_fast.estimate_log_likelihood`.
    """

    def __init__(
        self,
        k: int = 500,
        *,
        limit: int | None = None,
        every: int = 1,
        seed: int = 0,
        prefix: str = "val",
        **options: Any,
    ) -> None:
        super().__init__()
        self.k, self.every = check_size("k", k), check_size("every", every)
        self.limit = limit if limit is None else check_size("limit", limit)
        self.seed, self.prefix, self.options = seed, prefix, options
        #: of the last evaluation, this process's
        self.estimate: evaluation.LikelihoodEstimate | None = None
        self._batches: list[Tensor] = []
        self._validations = 0

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._batches = []

    def on_validation_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        seen = sum(map(len, self._batches))
        if trainer.sanity_checking or (self.limit is not None and seen >= self.limit):
            return
        x = batch[0] if isinstance(batch, (list, tuple)) else batch
        if not isinstance(x, Tensor):
            raise TypeError(f"a batch must be x or a tuple (x, …), got {type(x).__name__}")
        self._batches.append(x if self.limit is None else x[: self.limit - seen])

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or not self._batches:
            return
        self._validations += 1
        if self._validations % self.every:
            return
        model = getattr(pl_module, "model", pl_module)
        first = trainer.global_rank << 40  # so that no two processes share noise
        with torch.inference_mode(False):
            self.estimate = estimate = evaluation.estimate_log_likelihood(
                model, torch.cat([b.clone() for b in self._batches]), self.k, seed=self.seed,
                first_example=first, **self.options,
            )  # fmt: skip
        self._batches = []
        numbers = {
            "log_likelihood": estimate.mean,
            "elbo": float(estimate.elbo.mean()),
            "ess": float(estimate.ess.median()),
            "pareto_k": float(estimate.pareto_k.median()),
        }
        pl_module.log_dict(
            {f"{self.prefix}_{name}": value for name, value in numbers.items()}, sync_dist=True
        )
