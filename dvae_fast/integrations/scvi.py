"""Models of scvi-tools, evaluated: log p of each cell with its error, Pareto k̂ and the curve.

`estimate_marginal_ll` is `get_marginal_ll` with all that; as a method of one's own model class::

    class MyModel(MarginalLikelihoodMixin, scvi.model.SCVI): ...

    MyModel.setup_anndata(adata)
    model = MyModel(adata)
    model.train()
    model.estimate_marginal_ll(k=5000)
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from dvae_fast.evaluation import estimate_from_log_weights
from dvae_fast.integrations import library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dvae_fast.evaluation import LikelihoodEstimate

__all__ = ["MarginalLikelihoodMixin", "estimate_marginal_ll"]

_scvi: Any = library("scvi", "scvi-tools", "1.1")
_X, _BATCH = "X", "batch"


class _LogWeights:
    """Log-weights of cells; x is their index in `tensors`."""

    def __init__(self, module: Any, tensors: dict[str, Tensor]) -> None:
        self.module, self._tensors = module, tensors

    def __call__(self, x: Tensor, k: int, seed: int) -> Tensor:
        """(B, k)."""
        cells = x.flatten().long()
        device = next(self.module.parameters()).device
        tensors = {name: t[cells.to(t.device)].to(device) for name, t in self._tensors.items()}
        inference, generative = self.module(
            tensors,
            inference_kwargs={"n_samples": k},
            get_inference_input_kwargs={"full_forward_pass": True},
            compute_loss=False,
        )
        shape, (q, z) = (k, len(cells)), (inference["qz"], inference["z"])
        log_w = generative["px"].log_prob(tensors[_X]).sum(-1)
        log_w = log_w + (generative["pz"].log_prob(z) - q.log_prob(z)).sum(-1)
        if not self.module.use_observed_lib_size:
            library_size, of_prior = inference["library"], generative["pl"]
            ratio = of_prior.log_prob(library_size) - inference["ql"].log_prob(library_size)
            log_w = log_w + ratio.sum(-1)
        log_w = log_w.view(shape).T
        return cast("Tensor", log_w)


def estimate_marginal_ll(
    model: Any,
    k: int = 5000,
    *,
    adata: Any = None,
    indices: Sequence[int] | None = None,
    **options: Any,
) -> LikelihoodEstimate:
    """log p(x) of each cell under a trained model of the kind of SCVI.

    Args:
        model: an `scvi.model.SCVI`, or another whose module gives qz, z and px as its does;
            ``gene_likelihood`` may be any of its own.
        k: importance samples a cell.
        adata: other cells, as of `get_marginal_ll`. Default: those of the model.
        indices: of cells in them. Default: all.
        options: as for `dvae_fast.estimate_from_log_weights`, but for a `batch_size` of 100.

    Raises:
        TypeError: for a model of another kind.
        ValueError: for one that was not trained, for indices of no cell, or an option that is
            wrong.
    """
    module = getattr(model, "module", None)
    if not isinstance(module, _scvi.module.VAE):
        raise TypeError(
            "model must be an scvi.model.SCVI, or another on scvi.module.VAE, got "
            f"{type(model).__name__}"
        )
    if not model.is_trained:
        raise ValueError("model must be trained, and is not: call its train() first")
    if not (adata is None or hasattr(adata, "n_obs")):
        raise TypeError(f"adata must be an AnnData, got {type(adata).__name__}")
    adata = model._validate_anndata(adata)
    if indices is not None:
        _check_indices(indices, adata.n_obs)
    batches = list(model._make_data_loader(adata=adata, indices=indices, shuffle=False))
    tensors = {
        name: torch.cat([batch[name] for batch in batches])
        for name, first in batches[0].items()
        if isinstance(first, Tensor)
    }
    cells = torch.arange(len(tensors[_X]), device="cpu")[:, None]
    options = {"batch_size": 100} | options
    estimate = estimate_from_log_weights(_LogWeights(module, tensors), cells, k, **options)
    # Bits are of a gene; the index of a cell is one number.
    return dataclasses.replace(estimate, data_size=tensors[_X].shape[1])


def _check_indices(indices: Sequence[int], cells: int) -> None:
    rows = np.asarray(indices)
    if rows.dtype == bool:  # a mask
        rows = rows.nonzero()[0]
    if rows.size == 0 or rows.min() < 0 or rows.max() >= cells:
        got = f"{rows.min()} to {rows.max()}" if rows.size else "none"
        raise ValueError(f"indices must be of cells, 0 to {cells - 1}, got {got}")


class MarginalLikelihoodMixin:
    """`estimate_marginal_ll` as a method of a model's class."""

    def estimate_marginal_ll(
        self,
        k: int = 5000,
        *,
        adata: Any = None,
        indices: Sequence[int] | None = None,
        **options: Any,
    ) -> LikelihoodEstimate:
        """As :func:`estimate_marginal_ll`."""
        return estimate_marginal_ll(self, k, adata=adata, indices=indices, **options)
