"""Networks and a training loop of your own, over the functions: a denoising IWAE on digits."""

from __future__ import annotations

import torch
import typer
from torch import nn

from dvae_fast import SaltAndPepper, corrupt, estimate_log_likelihood, iwae_loss, sample_latent
from dvae_fast.data import load_dataset
from dvae_fast.evaluation import LikelihoodEstimate

D, Z, HIDDEN, K = 64, 10, 100, 5


def main(epochs: int = 30, k: int = 1000) -> LikelihoodEstimate:
    torch.manual_seed(0)
    data = load_dataset("digits")
    x_train, x_test = data.evaluation("train"), data.evaluation("test")  # (N, D), 0 or 1

    encoder = nn.Sequential(nn.Linear(D, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * Z))
    decoder = nn.Sequential(nn.Linear(Z, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, D))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 2e-3)
    noise = SaltAndPepper(0.05)

    for epoch in range(1, epochs + 1):
        total = 0.0
        for x in x_train[torch.randperm(len(x_train))].split(100):
            mean, log_var = encoder(corrupt(x, noise)).chunk(2, -1)  # (B, Z) each
            z, log_ratio = sample_latent(mean, log_var, K)  # (B, K, Z) and (B, K)
            loss = iwae_loss(decoder(z), x, log_ratio)  # the target is the clean x
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        if epoch % 10 == 0 or epoch == epochs:
            print(f"epoch {epoch}: bound {-total / len(x_train):.2f} nats")

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return encoder(x).chunk(2, -1)

    estimate = estimate_log_likelihood((encode, decoder), x_test, k, seed=0)
    print(f"log p(x) = {estimate.mean:.2f} ± {estimate.mean_standard_error:.2f} nats, k = {k}")
    for warning in estimate.warnings():
        print(warning)
    return estimate


if __name__ == "__main__":
    typer.run(main)
