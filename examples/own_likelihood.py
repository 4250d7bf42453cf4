"""A likelihood that is not there: Student's t, for real numbers with outliers.

One class. The model trains with it, and the evaluator takes it; a Gaussian is beside it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import typer
from torch import Tensor

from dvae_fast import VAE, Likelihood, estimate_log_likelihood
from dvae_fast.likelihoods import identity, positive

DEGREES = 3.0


class StudentT(Likelihood):
    """Of DEGREES degrees of freedom, with a mean and a scale that the decoder gives."""

    params: ClassVar = {"mean": identity, "scale": positive}

    def log_prob(self, params: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
        mean, scale = params
        constant = math.lgamma((DEGREES + 1) / 2) - math.lgamma(DEGREES / 2)
        constant -= 0.5 * math.log(DEGREES * math.pi)
        t = (x - mean) / scale
        return constant - scale.log() - (DEGREES + 1) / 2 * torch.log1p(t * t / DEGREES)

    def mean(self, params: tuple[Tensor, Tensor]) -> Tensor:
        return params[0]

    def sample(
        self, params: tuple[Tensor, Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        mean, scale = params
        normal = torch.randn(mean.shape, generator=generator)
        chi2 = 2 * torch._standard_gamma(torch.full_like(mean, DEGREES / 2), generator=generator)
        return mean + scale * normal * torch.sqrt(DEGREES / chi2)


def make_data(n: int) -> Tensor:
    """20 numbers that two latent ones explain, one in fifty of them an outlier."""
    z = torch.randn(n, 2)
    x = torch.tanh(z @ torch.randn(2, 20)) + 0.1 * torch.randn(n, 20)
    return torch.where(torch.rand(n, 20) < 0.02, 5 * torch.randn(n, 20), x)


def main(steps: int = 600, k: int = 500) -> dict[str, float]:
    torch.manual_seed(0)
    x = make_data(1200)
    x_train, x_test = x[:1000], x[1000:]
    found = {}
    for name, likelihood in (("gaussian", "gaussian_real"), ("student", StudentT())):
        torch.manual_seed(1)
        model = VAE(20, 2, (50,), likelihood=likelihood)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            model.loss(x_train[torch.randint(len(x_train), (100,))]).backward()
            optimizer.step()
        estimate = estimate_log_likelihood(model, x_test, k, seed=0)
        found[name] = estimate.mean
        print(f"{name}: log p(x) = {estimate.mean:.2f} ± {estimate.mean_standard_error:.2f} nats")
    return found


if __name__ == "__main__":
    typer.run(main)
