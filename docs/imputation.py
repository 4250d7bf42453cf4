"""How well half of an image's pixels are told by the other half.

    python docs/imputation.py FOLDER [--data mnist] [--epochs 10] [--limit 1000] [--k 1000]

Half of the pixels of all images, of those that train too, are made missing at random; an IWAE is
trained on the rest into FOLDER (or is taken from there) and imputes those of the test set. Prints
the table of docs/missing.md: what is imputed, and what simpler guesses are, against the truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dvae_fast import sample_latent
from dvae_fast.data import SPLITS, Dataset, load_dataset
from dvae_fast.models import LatentVariableModel, load_model
from dvae_fast.training import default_config, train

MISSING = 0.5


def with_holes(name: str) -> tuple[Dataset, Dataset]:
    """(as it is, with holes), which have the same draws of black and white."""
    grey = load_dataset(name, binarise="none")
    generator = torch.Generator().manual_seed(1)
    images = {split: getattr(grey, split).view(-1, *grey.image_shape) for split in SPLITS}
    holes = {
        split: x.masked_fill(torch.rand(x.shape, generator=generator) < MISSING, torch.nan)
        for split, x in images.items()
    }
    made = {"values": "grey", "binarise": "dynamic", "name": f"{name}_with_holes"}
    return Dataset.from_arrays(**images, **made), Dataset.from_arrays(
        **holes, **made, missing="nan"
    )


@torch.no_grad()
def guesses(model: LatentVariableModel, data: Dataset, x: Tensor, k: int) -> dict[str, Tensor]:
    """What each way makes of examples (n, D) with holes: means, (n, D)."""
    mask = ~x.isnan()
    seen = x.nan_to_num(0.0)
    mean, log_var = model.encode(seen)
    z, _ = sample_latent(mean, log_var, 1, seed=2)
    found = {
        "the mean image": data.mean.expand_as(x),
        "reconstruction from the posterior's mean": model.reconstruct(x, mask=mask),
        "reconstruction from a sample of it": model.likelihood.mean(model.decode(z[:, 0])),
    }
    for some in (10, 100, k):
        found[f"`model.impute(x, mask, k={some:,})`"] = model.impute(x, mask, some, seed=3).value
    return found


def score(guess: Tensor, truth: Tensor, missing: Tensor) -> tuple[float, float, float]:
    """Of the missing pixels: mean squared error, its standard error, share on the wrong side."""
    each = (guess - truth).square().masked_fill(~missing, 0).sum(1) / missing.sum(1)
    wrong = ((guess > 0.5) != (truth > 0.5))[missing].double().mean()
    return float(each.mean()), float(each.std() / len(each) ** 0.5), float(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--k", type=int, default=1000)
    args = parser.parse_args()
    whole, holes = with_holes(args.data)
    if not (args.folder / "model.safetensors").exists():
        config = default_config("iwae", holes, epochs=args.epochs, samples=5)
        train(config, args.folder, data=holes, tensorboard=False)
    model = load_model(args.folder)
    assert isinstance(model, LatentVariableModel)
    x = holes.evaluation("test")[: args.limit]
    truth = whole.evaluation("test")[: args.limit].double()
    print(
        f"| {len(x):,} test images, {MISSING:.0%} of the pixels missing | squared error | wrong |"
    )
    print("|---|---|---|")
    for name, guess in guesses(model, holes, x, args.k).items():
        error, spread, wrong = score(guess.double(), truth, x.isnan())
        print(f"| {name} | {error:.4f} ± {spread:.4f} | {wrong:.1%} |")


if __name__ == "__main__":
    main()
