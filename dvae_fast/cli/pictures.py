"""The pictures that the commands leave in the folder of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dvae_fast._extras import MissingExtraError
from dvae_fast.evaluation import LikelihoodEstimate
from dvae_fast.kept import PICTURES
from dvae_fast.models import Autoencoder, LatentVariableModel, load_model
from dvae_fast.plots import (
    plot_bounds,
    plot_ess,
    plot_learning_curve,
    plot_reconstructions,
    plot_samples,
    plot_worst,
)
from dvae_fast.training import TrainConfig, each_label, reconstructions

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from dvae_fast.data import Dataset
    from dvae_fast.evaluation import AISEstimate

__all__ = ["IN_ORDER", "SAMPLED", "evaluation_pictures", "run_pictures"]

SAMPLED = 100
IN_ORDER = ", labels in order"
_PICTURED = 10  # examples in the picture of reconstructions
_SIDE = 13  # images a side of the picture of two latents


def evaluation_pictures(
    stem: Path,
    config: TrainConfig,
    model: Autoencoder,
    report: dict[str, Any],
    estimate: LikelihoodEstimate | AISEstimate,
) -> None:
    """``<stem>_bounds.png`` and the others; those of an earlier evaluation go."""
    bounds, ess, lowest = paths = [stem.with_name(f"{stem.name}_{name}.png") for name in PICTURES]
    for path in paths:
        path.unlink(missing_ok=True)
    title = f"{report['model']} on {report['data']}, {report['split']} set"
    if isinstance(estimate, LikelihoodEstimate):
        if len(estimate.curve_k) > 1:
            plot_bounds(
                estimate.curve_k, estimate.curve, estimate.curve_standard_error, bounds,
                title=title,
            )  # fmt: skip
        plot_ess(estimate.ess, estimate.spent, ess, title=title)
    data = config.load_data()
    worst = estimate.log_likelihood.nan_to_num(-math.inf).argsort()[:_PICTURED]
    x = data.evaluation(report["split"])[worst]
    told = config.context_of(data)
    context = None if told is None else told[report["split"]][worst]
    labels = [f"#{i}\n{estimate.log_likelihood[i]:.1f}" for i in worst.tolist()]
    plot_worst(
        x, model.reconstruct(x, context=context), labels, data.image_shape, lowest,
        title=f"{title}: lowest log p(x), in nats",
    )  # fmt: skip


def run_pictures(
    console: Console, config: TrainConfig, folder: Path, metrics: dict[str, Any]
) -> list[str]:
    """The run's PNGs; their names. Without matplotlib, one line that says so."""
    model, data = load_model(folder), config.load_data()
    title = f"{config.model} on {config.data}"
    try:
        plot_learning_curve(metrics["history"], folder / "learning_curve.png", title=title)
        by_label = each_label(model, SAMPLED)
        plot_samples(
            model.sample(SAMPLED, seed=config.seed, context=by_label), data.image_shape,
            folder / "samples.png",
            title=f"{title}: means of p(x|z), z from the prior{IN_ORDER * (by_label is not None)}",
        )  # fmt: skip
        _plot_reconstructions(model, data, config, folder / "reconstructions.png", title)
        names = ["learning_curve.png", "samples.png", "reconstructions.png"]
        if isinstance(model, LatentVariableModel) and model.has_plane and by_label is None:
            plot_samples(
                model.manifold(_SIDE).flatten(0, 1), data.image_shape, folder / "manifold.png",
                columns=_SIDE, title=f"{title}: the plane of two latents",
            )  # fmt: skip
            names.append("manifold.png")
    except MissingExtraError as error:
        console.print(f"No pictures: {error}", soft_wrap=True, markup=False)
        return []
    return names


def _plot_reconstructions(
    model: Autoencoder, data: Dataset, config: TrainConfig, path: Path, title: str
) -> None:
    told = config.context_of(data)
    context = None if told is None else told["test"][:_PICTURED]
    x, noisy, means = reconstructions(
        model, data.evaluation("test")[:_PICTURED], config.seed, context
    )
    given = noisy if model.corruption is not None else None
    plot_reconstructions(x, given, means, data.image_shape, path, title=f"{title}: test set")
