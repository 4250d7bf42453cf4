"""Training by Lightning, with log p of the validation set at the end of each validation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
import typer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dvae_fast import DIWAE
from dvae_fast.data import load_dataset
from dvae_fast.integrations.lightning import EvaluateLikelihood


class Module(lightning.LightningModule):
    """A denoising IWAE: the loss is the model's own, and so is the corruption."""

    def __init__(self) -> None:
        super().__init__()
        self.model = DIWAE(64, 10, (64,), samples=5)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.model.loss(batch[0])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.model.loss(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 2e-3)


def main(epochs: int = 20, k: int = 500) -> dict[str, float]:
    lightning.seed_everything(0)
    data = load_dataset("digits", seed=0)
    loaders = [
        DataLoader(TensorDataset(data.evaluation(part)), batch_size=100, shuffle=part == "train")
        for part in ("train", "valid")
    ]
    more: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[EvaluateLikelihood(k=k, limit=200)], accelerator="cpu",
        enable_progress_bar=False, **more,
    )  # fmt: skip
    trainer.fit(Module(), *loaders)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(logged)
    return logged


if __name__ == "__main__":
    typer.run(main)
