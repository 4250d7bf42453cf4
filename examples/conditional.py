"""A conditional VAE: log p(x|label), and under which label an image is likeliest."""

from __future__ import annotations

from pathlib import Path

import torch
import typer

from dvae_fast import IWAE, estimate_log_likelihood
from dvae_fast.data import load_dataset
from dvae_fast.plots import plot_samples


def main(epochs: int = 30, k: int = 200, picture: Path | None = None) -> float:
    torch.manual_seed(0)
    data = load_dataset("digits")
    assert data.labels is not None
    x_train, x_test = data.evaluation("train"), data.evaluation("test")[:100]
    y_train, y_test = data.labels["train"], data.labels["test"][:100]

    model = IWAE(64, 10, (100,), context_size=10, samples=5)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x_train)).split(100):
            optimizer.zero_grad()
            model.loss(x_train[index], context=y_train[index]).backward()
            optimizer.step()

    given = estimate_log_likelihood(model, x_test, k, context=y_test, seed=0)
    print(f"log p(x|label) = {given.mean:.2f} ± {given.mean_standard_error:.2f} nats")

    # By Bayes' rule with labels equally likely a priori: the label under which x is likeliest.
    each = torch.stack(
        [
            estimate_log_likelihood(
                model, x_test, k, context=torch.full_like(y_test, label), seed=0
            ).log_likelihood
            for label in range(10)
        ]
    )
    right = float((each.argmax(0) == y_test).double().mean())
    print(f"{right:.0%} of the test images are likeliest under their own label")
    if picture is not None:
        rows = model.sample(100, seed=1, context=torch.arange(10).repeat_interleave(10))
        plot_samples(rows, (8, 8), picture, columns=10, title="a row for each label")
    return right


if __name__ == "__main__":
    typer.run(main)
