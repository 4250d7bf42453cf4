"""SCVI's marginal likelihood, with its error, against its own estimate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

scvi: Any = pytest.importorskip("scvi")
anndata: Any = pytest.importorskip("anndata")
ours: Any = pytest.importorskip("dvae_fast.integrations.scvi")

N, GENES, K = 48, 10, 400
pytestmark = [pytest.mark.library, pytest.mark.filterwarnings("ignore")]


def _data(seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    counts = rng.negative_binomial(2, 0.3, (N, GENES)).astype(np.float32)
    data = anndata.AnnData(counts)
    data.obs["lane"] = [f"lane {i % 2}" for i in range(N)]
    return data


def _model(data: Any, cls: Any = scvi.model.SCVI, **options: Any) -> Any:
    scvi.settings.seed = 2
    cls.setup_anndata(data, batch_key="lane")
    model = cls(data, n_latent=2, **options)
    model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False, logger=False)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"gene_likelihood": "nb"},
        {"gene_likelihood": "zinb"},
        {"gene_likelihood": "nb", "use_observed_lib_size": False},
    ],
    ids=["nb", "zinb", "latent library"],
)
def test_its_own_estimate_agrees(options: dict[str, Any]) -> None:
    """Within 3 standard errors of the difference: a false alarm in 370; seeds are fixed."""
    model = _model(_data(), **options)
    found = ours.estimate_marginal_ll(model, K, seed=3)
    scvi.settings.seed = 4
    theirs = float(model.get_marginal_ll(n_mc_samples=K, n_mc_samples_per_pass=K))
    error = math.sqrt(2) * found.mean_standard_error
    assert 0 < error < 0.5
    assert abs(found.mean - theirs) < 3 * error
    assert found.log_likelihood.shape == (N,)
    assert found.bits_per_dimension == pytest.approx(-found.mean / GENES / math.log(2))


def test_other_cells_and_a_method() -> None:
    class Mine(ours.MarginalLikelihoodMixin, scvi.model.SCVI):  # type: ignore[misc]
        pass

    model = _model(_data(), Mine)
    some = [3, 0, 7]
    found = model.estimate_marginal_ll(30, indices=some, seed=1)
    assert found.log_likelihood.shape == (3,)
    others = _data(2)
    elsewhere = ours.estimate_marginal_ll(model, 30, adata=others, indices=some, seed=1)
    assert not torch.equal(elsewhere.log_likelihood, found.log_likelihood)


def test_what_is_no_model_of_it_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model must be an scvi\.model\.SCVI, .* got Linear"):
        ours.estimate_marginal_ll(torch.nn.Linear(2, 3))
    data = _data()
    scvi.model.SCVI.setup_anndata(data, batch_key="lane")
    with pytest.raises(ValueError, match="model must be trained, and is not"):
        ours.estimate_marginal_ll(scvi.model.SCVI(data, n_latent=2))
    model = _model(data)
    with pytest.raises(TypeError, match="adata must be an AnnData, got ndarray"):
        ours.estimate_marginal_ll(model, 5, adata=np.ones((3, GENES)))
    for indices, got in (([0, N], f"0 to {N}"), ([-1, 3], "-1 to 3"), ([], "none")):
        with pytest.raises(ValueError, match=f"indices must be of cells, 0 to 47, got {got}"):
            ours.estimate_marginal_ll(model, 5, indices=indices)
