"""An IWAE as a program of Pyro, trained by three losses on the same networks; and its NLL.

The plate of the data is subsampled, as Pyro's guides have it, so that every loss is an estimate for
the whole training set. `RenyiELBO` raises each weight to the power of the plate's scale before it
takes the logarithm; `ImportanceELBO` scales the logarithm. A table is printed at the end.
"""

from __future__ import annotations

import time
from typing import Any

import pyro
import torch
import typer
from pyro import distributions as dist
from pyro.infer import SVI, RenyiELBO
from torch import Tensor, nn

from dvae_fast.data import load_dataset
from dvae_fast.integrations.pyro import ImportanceELBO, estimate_log_likelihood

PIXELS, LATENTS, BATCH = 64, 10, 100


class IWAE:
    """Encoder and decoder, and the two programs that use them."""

    def __init__(self, examples: int) -> None:
        torch.manual_seed(0)
        self.examples = examples
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 64), nn.Tanh(), nn.Linear(64, 2 * LATENTS))
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 64), nn.Tanh(), nn.Linear(64, PIXELS))

    def plate(self, x: Tensor) -> Any:
        rows = torch.arange(len(x))
        return pyro.plate("data", max(self.examples, len(x)), subsample=rows, dim=-1)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENTS), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        mean, log_scale = self.encoder(x).chunk(2, -1)
        with self.plate(x):
            pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))


def losses(particles: int) -> dict[str, Any]:
    return {
        "RenyiELBO, alpha=0": RenyiELBO(num_particles=particles, vectorize_particles=True),
        "ImportanceELBO, standard": ImportanceELBO(particles, estimator="standard"),
        "ImportanceELBO, dreg": ImportanceELBO(particles, estimator="dreg"),
    }


def main(epochs: int = 40, particles: int = 20, k: int = 1000) -> dict[str, tuple[float, float]]:
    data = load_dataset("digits", seed=0)
    x_train, x_test = data.evaluation("train"), data.evaluation("test")
    found, rows = {}, []
    for name, elbo in losses(particles).items():
        pyro.clear_param_store()
        one = IWAE(len(x_train))
        elbo.loss(one.model, one.guide, x_train[:BATCH])  # what is done once, before the clock runs
        pyro.set_rng_seed(1)
        svi = SVI(one.model, one.guide, pyro.optim.Adam({"lr": 2e-3}), elbo)
        start = time.perf_counter()
        for _ in range(epochs):
            for batch in x_train[torch.randperm(len(x_train))].split(BATCH):
                svi.step(batch)
        seconds = time.perf_counter() - start
        estimate = estimate_log_likelihood(one.model, one.guide, x_test, k, seed=0, batch_size=50)
        found[name] = (-estimate.mean, seconds)
        rows.append(
            f"| {name} | {-estimate.mean:.2f} ± {estimate.mean_standard_error:.2f} | "
            f"{float(estimate.pareto_k.median()):.2f} | {seconds:.1f} |"
        )
    print("| loss | NLL of the test set, nats | median k̂ | seconds of training |")
    print("|---|---|---|---|", *rows, sep="\n")
    return found


if __name__ == "__main__":
    typer.run(main)
