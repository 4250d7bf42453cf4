"""Missing values: half of all pixels are never seen in training, and then filled in."""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from torch.utils.data import DataLoader, TensorDataset

from dvae_fast import IWAE, estimate_log_likelihood, impute
from dvae_fast.data import load_dataset
from dvae_fast.plots import plot_rows
from dvae_fast.training import TrainingStep


def main(epochs: int = 40, k: int = 500, picture: Path | None = None) -> tuple[float, float]:
    torch.manual_seed(0)
    data = load_dataset("digits")
    x_train, x_test = data.evaluation("train"), data.evaluation("test")[:100]
    seen_train = torch.rand(x_train.shape) < 0.5  # True where a value is known
    seen_test = torch.rand(x_test.shape) < 0.5

    model = IWAE(64, 10, (100,), samples=5)
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), 2e-3))
    batches = DataLoader(TensorDataset(x_train, seen_train), batch_size=100, shuffle=True)
    for _ in range(epochs):
        for x, seen in batches:
            step(x, mask=seen)

    estimate = estimate_log_likelihood(model, x_test, k, mask=seen_test, seed=0)
    print(f"log p(x observed) = {estimate.mean:.2f} ± {estimate.mean_standard_error:.2f} nats")

    filled = impute(model, x_test, seen_test, k, seed=0)  # E[x missing | x observed]
    hidden = ~seen_test
    truth = x_test[hidden].double()
    ours = float((filled.value[hidden] - truth).square().mean().sqrt())
    mean = (x_train * seen_train).sum(0) / seen_train.sum(0)  # of what was seen of each pixel
    plain = float((mean.expand_as(x_test)[hidden].double() - truth).square().mean().sqrt())
    print(f"error of what is filled in: {ours:.3f}; of the pixels' means: {plain:.3f}")
    if picture is not None:
        shown = torch.where(seen_test, x_test, 0.5)
        rows = [("x", x_test[:10]), ("seen", shown[:10]), ("filled", filled.value[:10].float())]
        plot_rows(rows, (8, 8), picture)
    return ours, plain


if __name__ == "__main__":
    typer.run(main)
