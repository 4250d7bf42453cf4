"""Pictures of trained models: samples, reconstructions, interpolations, filters, a manifold.

    python docs/pictures.py VAE DVAE FREY [--output FOLDER] [--seed N]

VAE and DVAE are folders of runs on MNIST with perceptron encoders, of `dvae-fast train` or
`dvae-fast reproduce`; FREY is one of a run with two latents. docs/pictures.md tells what is seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dvae_fast import corrupt
from dvae_fast._extras import MissingExtraError
from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.data import DataError, evenly_spaced
from dvae_fast.files import CheckpointError
from dvae_fast.models import load_model
from dvae_fast.plots import plot_filters, plot_rows, plot_samples
from dvae_fast.training import load_config

if TYPE_CHECKING:
    from dvae_fast.models import LatentVariableModel
    from dvae_fast.training import TrainConfig

SAMPLES, FILTERS, SIDE, STEPS, PAIRS = 100, 36, 13, 10, 5
LEVELS = (0.05, 0.1, 0.15, 0.3, 0.5)

Run = tuple["TrainConfig", "LatentVariableModel"]


def load(folder: Path) -> Run:
    """The configuration and the best model of a run."""
    try:
        return load_config(folder), load_model(folder)
    except CheckpointError as error:
        raise SystemExit(f"pictures: {error}") from None


def strongest(model: LatentVariableModel, name: str, n: int) -> Tensor:
    """(n, D): the first layer's weights of the n units whose weights have the largest norm."""
    first = next((m for m in model.encoder.modules() if isinstance(m, nn.Linear)), None)
    if first is None or first.in_features != model.data_size:
        raise SystemExit(f"pictures: the encoder of {name} must be a perceptron over the pixels")
    weights = first.weight.detach()
    if len(weights) < n:
        raise SystemExit(f"pictures: the encoder of {name} must have >= {n} units in its first "
                         f"layer, got {len(weights)}")  # fmt: skip
    return weights[weights.norm(dim=1).argsort(descending=True)[:n]]


def noise_rows(
    models: dict[str, LatentVariableModel], x: Tensor, seed: int
) -> list[tuple[str, Tensor]]:
    """x, then at each level x̃, the same for all models; after each its reconstructions."""
    rows = []
    for level in (0.0, *LEVELS):
        given = corrupt(x, SaltAndPepper(level), seed=seed) if level else x
        rows.append((f"{100 * level:.0f} %" if level else "$x$", given))
        rows += [(name, model.reconstruct(given)) for name, model in models.items()]
    return rows


def draw(
    models: dict[str, LatentVariableModel],
    filters: dict[str, Tensor],
    x: Tensor,
    shape: tuple[int, int],
    output: Path,
    seed: int,
) -> None:
    """The pictures of VAE and DVAE; the first half of x is interpolated to the second."""
    for name, model in models.items():
        plot_samples(
            model.sample(SAMPLES, seed=seed), shape, output / f"samples_{name.lower()}.png",
            title=f"{name}: means of p(x|z), z from the prior",
        )  # fmt: skip
    plot_rows(noise_rows(models, x, seed), shape, output / "noise_levels.png",
              title="x or x̃, and the reconstructions from it")  # fmt: skip
    lines = models["DVAE"].interpolate(x[:PAIRS], x[PAIRS:], STEPS).flatten(0, 1)
    plot_samples(lines, shape, output / "interpolation.png", columns=STEPS,
                 title="DVAE: straight lines between two codes")  # fmt: skip
    plot_filters(filters, shape, output / "filters.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of trained models.")
    parser.add_argument("vae", type=Path, help="run of a VAE on MNIST")
    parser.add_argument("dvae", type=Path, help="run of a DVAE on MNIST")
    parser.add_argument("frey", type=Path, help="run with two latents")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures")
    parser.add_argument("--seed", type=int, default=0, help="of latents and noise")
    a = parser.parse_args()
    runs = {"VAE": load(a.vae), "DVAE": load(a.dvae)}
    frey_config, frey = load(a.frey)
    shape = runs["VAE"][1].image_shape
    if runs["DVAE"][1].image_shape != shape:
        raise SystemExit(f"pictures: VAE and DVAE must have images of one shape, got {shape} and "
                         f"{runs['DVAE'][1].image_shape}")  # fmt: skip
    if frey.latent_size != 2:
        raise SystemExit(f"pictures: FREY must have two latents, got {frey.latent_size}")
    models = {name: model for name, (_, model) in runs.items()}
    filters = {name: strongest(model, name, FILTERS) for name, model in models.items()}
    try:
        x = runs["VAE"][0].load_data().evaluation("test")
    except DataError as error:
        raise SystemExit(f"pictures: {error}") from None
    x = evenly_spaced(x, 2 * PAIRS)  # the fixed test set is sorted by digit

    try:
        draw(models, filters, x, shape, a.output, a.seed)
        plot_samples(
            frey.manifold(SIDE).flatten(0, 1), frey.image_shape, a.output / "manifold.png",
            columns=SIDE,
            title=f"{frey_config.model} on {frey_config.data}: the plane of two latents",
        )  # fmt: skip
    except (CheckpointError, MissingExtraError) as error:
        raise SystemExit(f"pictures: {error}") from None


if __name__ == "__main__":
    main()
