"""A corruption of your own: rows of an image are hidden, at a rate that one chooses.

A function would do; a class has a name and parameters. The encoder sees what is left, the target is
the whole image.
"""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from torch import Tensor

from dvae_fast import DIWAE, estimate_log_likelihood
from dvae_fast.corruptions import Corruption
from dvae_fast.data import load_dataset
from dvae_fast.evaluation import LikelihoodEstimate
from dvae_fast.plots import plot_reconstructions


class HiddenRows(Corruption):
    """Each of the 8 rows of an image is 0 with probability `rate`."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        rows = x.unflatten(-1, (8, 8))
        kept = torch.rand(rows.shape[:-1], generator=generator) >= self.rate
        return (rows * kept.unsqueeze(-1)).flatten(-2)


def main(epochs: int = 20, k: int = 500, picture: Path | None = None) -> LikelihoodEstimate:
    torch.manual_seed(0)
    data = load_dataset("digits")
    x_train, x_test = data.evaluation("train"), data.evaluation("test")
    noise = HiddenRows(0.2)
    model = DIWAE(64, 10, (100,), corruption=noise, samples=5)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for x in x_train[torch.randperm(len(x_train))].split(100):
            optimizer.zero_grad()
            model.loss(x).backward()
            optimizer.step()
    estimate = estimate_log_likelihood(model, x_test, k, seed=0)
    print(f"log p(x) = {estimate.mean:.2f} ± {estimate.mean_standard_error:.2f} nats")
    if picture is not None:
        noisy = noise.draw(x_test[:10], torch.Generator().manual_seed(0))
        plot_reconstructions(x_test[:10], noisy, model.reconstruct(noisy), (8, 8), picture)
        print(f"{picture}: digits, what the encoder sees, and what it makes of it")
    return estimate


if __name__ == "__main__":
    typer.run(main)
