"""A model that is none of this package's, its posterior a flow of torch.distributions.

An encoder may return any distribution with ``rsample`` and ``log_prob``; or give log-weights by a
function. Both ways agree.
"""

from __future__ import annotations

import torch
import typer
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Distribution,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from dvae_fast import estimate_from_log_weights, estimate_log_likelihood
from dvae_fast.data import load_dataset
from dvae_fast.evaluation import LikelihoodEstimate

D, Z = 64, 5


class FlowVAE(nn.Module):
    """q(z|x) is a Gaussian through 4 tanh, so that it ends at ±4."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, 64), nn.Softplus(), nn.Linear(64, 2 * Z))
        self.decoder = nn.Sequential(nn.Linear(Z, 64), nn.Softplus(), nn.Linear(64, D))

    def encode(self, x: Tensor) -> Distribution:
        mean, log_std = self.encoder(x).chunk(2, -1)
        base = Independent(Normal(mean, log_std.exp()), 1)
        return TransformedDistribution(
            base, [TanhTransform(cache_size=1), AffineTransform(0.0, 4.0)]
        )

    def decode(self, z: Tensor) -> Tensor:
        logits: Tensor = self.decoder(z)
        return logits

    def log_weights(self, x: Tensor, k: int, seed: int = 0) -> Tensor:
        """(B, D) → (B, k)."""
        q = self.encode(x)
        z = q.rsample((k,))
        log_p = Bernoulli(logits=self.decode(z)).log_prob(x).sum(-1)
        return (log_p + Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z)).T


def main(steps: int = 400, k: int = 1000) -> tuple[LikelihoodEstimate, LikelihoodEstimate]:
    torch.manual_seed(0)
    data = load_dataset("digits")
    x_train, x_test = data.evaluation("train"), data.evaluation("test")[:100]
    model = FlowVAE()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -model.log_weights(x_train[torch.randint(len(x_train), (100,))], 1).mean()
        loss.backward()
        optimizer.step()

    by_model = estimate_log_likelihood(model, x_test, k, seed=0)  # encode and decode
    by_weights = estimate_from_log_weights(model.log_weights, x_test, k, seed=1)
    for way, estimate in (("encode, decode", by_model), ("log-weights", by_weights)):
        print(
            f"by {way}: log p(x) = {estimate.mean:.2f} ± {estimate.mean_standard_error:.2f} nats, "
            f"median k̂ {float(estimate.pareto_k.median()):.2f}"
        )
    return by_model, by_weights


if __name__ == "__main__":
    typer.run(main)
