"""A loop by accelerate: one process or many, one GPU or several, the same file.

``accelerate launch examples/accelerate_loop.py``; each process evaluates its part of the test set.
"""

from __future__ import annotations

import torch
import typer
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from dvae_fast import IWAE, estimate_log_likelihood
from dvae_fast.data import load_dataset


def main(epochs: int = 20, k: int = 500) -> float:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    data = load_dataset("digits", seed=0)
    model = IWAE(64, 10, (64,), samples=5)
    loader = DataLoader(TensorDataset(data.evaluation("train")), batch_size=100, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    own = accelerator.unwrap_model(model)
    for _ in range(epochs):
        for (x,) in loader:
            optimizer.zero_grad()
            accelerator.backward(model(x).mean())
            optimizer.step()
    test = data.evaluation("test")
    with accelerator.split_between_processes(list(range(len(test)))) as rows:
        part = test[rows[0] : rows[-1] + 1]
        estimate = estimate_log_likelihood(own, part, k, seed=0, first_example=rows[0])
    each = accelerator.gather(estimate.log_likelihood.to(accelerator.device))
    accelerator.print(f"log p(x) = {float(each.mean()):.2f} nats")
    return float(each.mean())


if __name__ == "__main__":
    typer.run(main)
