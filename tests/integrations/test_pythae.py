"""Models of pythae: against its own estimate, and the exact answer where there is one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dvae_fast

models: Any = pytest.importorskip("pythae.models")
ours: Any = pytest.importorskip("dvae_fast.integrations.pythae")

N, Z, K = 6, 2, 600
SHAPE = (1, 3, 4)
pytestmark = [pytest.mark.library, pytest.mark.filterwarnings("ignore")]

NAMES = {
    "VAE": "VAEConfig", "BetaVAE": "BetaVAEConfig", "IWAE": "IWAEConfig", "VAMP": "VAMPConfig",
    "VAE_IAF": "VAE_IAF_Config", "VAE_LinNF": "VAE_LinNF_Config", "INFOVAE_MMD":
    "INFOVAE_MMD_Config",
}  # fmt: skip


def _made(name: str, loss: str) -> Any:
    torch.manual_seed(2)
    config = getattr(models, NAMES[name])(
        input_dim=SHAPE, latent_dim=Z, reconstruction_loss=loss, uses_default_encoder=True
    )
    return getattr(models, name)(config).eval()


def _x() -> Tensor:
    return torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(1)).round()


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("name", NAMES)
def test_its_own_estimate_agrees(name: str, loss: str) -> None:
    """Within 4 standard errors of the difference: a false alarm in 16,000; seeds are fixed."""
    model, x = _made(name, loss), _x()
    found = ours.estimate_log_likelihood(model, x, K, seed=3)
    torch.manual_seed(4)
    with torch.no_grad():
        theirs = float(model.get_nll(x, n_samples=K, batch_size=K))
    error = math.sqrt(2) * found.mean_standard_error
    assert 0 < error < 0.3
    assert abs(found.mean - theirs) < 4 * error + 1e-4
    assert model.training is False


def test_a_class_of_ones_own_is_its_parents() -> None:
    class Mine(models.VAE):  # type: ignore[misc]
        pass

    config = models.VAEConfig(input_dim=SHAPE, latent_dim=Z, reconstruction_loss="bce")
    estimate = ours.estimate_log_likelihood(Mine(config), _x(), 5, seed=1)
    assert bool(estimate.log_likelihood.isfinite().all())


def test_what_has_no_density_is_refused() -> None:
    auto = models.AE(models.AEConfig(input_dim=SHAPE, latent_dim=Z))
    hamiltonian = models.HVAE(models.HVAEConfig(input_dim=SHAPE, latent_dim=Z))
    for model in (auto, hamiltonian, nn.Linear(2, 3)):
        with pytest.raises(
            TypeError, match=f"model must be one of pythae's.*{type(model).__name__}:"
        ):
            ours.estimate_log_likelihood(model, _x(), 5)


def test_the_evaluator_says_where_it_is_evaluated() -> None:
    with pytest.raises(
        TypeError, match=r"got VAE of pythae, for which there is dvae_fast\.integrations\.pythae"
    ):
        dvae_fast.estimate_log_likelihood(_made("VAE", "bce"), _x(), 5)


def test_wrong_data_are_refused() -> None:
    model = _made("VAE", "bce")
    with pytest.raises(ValueError, match=r"x must have shape \(N, 1, 3, 4\), got \(6, 12\)"):
        ours.estimate_log_likelihood(model, _x().flatten(1), 5)
    with pytest.raises(ValueError, match="x must"):
        ours.estimate_log_likelihood(model, 3 * _x(), 5)
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        ours.estimate_log_likelihood(model, [[0.0] * 12], 5)
    model.model_config.reconstruction_loss = "hinge"
    with pytest.raises(ValueError, match=r"likelihood must be given .* loss 'hinge'"):
        ours.estimate_log_likelihood(model, _x(), 5)
    given = ours.estimate_log_likelihood(model, _x(), 5, likelihood="gaussian_real", seed=1)
    model.model_config.reconstruction_loss = "mse"
    same = ours.estimate_log_likelihood(model, _x(), 5, seed=1)
    assert torch.equal(given.log_likelihood, same.log_likelihood)
