"""SCVI, trained by scvi-tools and evaluated here, beside its own estimate and their times."""

from __future__ import annotations

import time

import anndata
import numpy as np
import scvi
import typer

from dvae_fast import LikelihoodEstimate
from dvae_fast.integrations.scvi import estimate_marginal_ll


def main(cells: int = 300, epochs: int = 40, k: int = 1000) -> tuple[LikelihoodEstimate, float]:
    scvi.settings.seed = 0
    rng = np.random.default_rng(0)
    mean = rng.gamma(2.0, 1.0, (3, 50))[rng.integers(3, size=cells)]
    counts = rng.negative_binomial(2, 2 / (2 + mean)).astype(np.float32)
    data = anndata.AnnData(counts)
    scvi.model.SCVI.setup_anndata(data)
    model = scvi.model.SCVI(data, n_latent=5, gene_likelihood="nb")
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, logger=False)
    start = time.perf_counter()
    estimate = estimate_marginal_ll(model, k, seed=0)
    middle = time.perf_counter()
    # Of each cell: its mean is one of minibatches' means, whatever their sizes.
    cells_own = model.get_marginal_ll(
        n_mc_samples=k, n_mc_samples_per_pass=min(k, 50), return_mean=False
    )
    theirs = float(cells_own.mean())
    end = time.perf_counter()
    print(estimate)
    print(f"here {middle - start:.2f} s; its own estimate {theirs:.2f} in {end - middle:.2f} s")
    return estimate, theirs


if __name__ == "__main__":
    typer.run(main)
