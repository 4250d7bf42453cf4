"""A VAE of pythae, trained by pythae and evaluated here: log p(x) with an error and a diagnosis."""

from __future__ import annotations

import tempfile

import torch
import typer
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.trainers import BaseTrainer, BaseTrainerConfig

from dvae_fast import LikelihoodEstimate
from dvae_fast.data import load_dataset
from dvae_fast.integrations.pythae import estimate_log_likelihood


def main(epochs: int = 30, k: int = 1000) -> LikelihoodEstimate:
    torch.manual_seed(0)
    data = load_dataset("digits", seed=0)
    x, test = (data.evaluation(part).view(-1, 1, 8, 8) for part in ("train", "test"))
    model = VAE(VAEConfig(input_dim=(1, 8, 8), latent_dim=10, reconstruction_loss="bce"))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder, num_epochs=epochs, learning_rate=1e-3, no_cuda=True,
            per_device_train_batch_size=100,
        )  # fmt: skip
        BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=config).train()
    estimate = estimate_log_likelihood(model, test, k, seed=0)
    print(estimate)
    return estimate


if __name__ == "__main__":
    typer.run(main)
