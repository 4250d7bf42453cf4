"""The pictures that the commands leave in the folder of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from dvae_fast._extras import MissingExtraError
from dvae_fast.evaluation import MIN_ESS, LikelihoodEstimate
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
from dvae_fast.table_plots import plot_columns, plot_table_rows
from dvae_fast.training import TrainConfig, each_label, reconstructions

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from torch import Tensor

    from dvae_fast.data import Dataset
    from dvae_fast.evaluation import AISEstimate

__all__ = ["IN_ORDER", "SAMPLED", "evaluation_pictures", "plot_draws", "run_pictures"]

SAMPLED = 100
IN_ORDER = ", labels in order"
_PICTURED = 10  # examples in the picture of reconstructions
_DRAWN = 1000  # rows of a table, and draws
_IMPUTED_BY = 1000  # samples an example
_SIDE = 13  # images a side of the picture of two latents


def evaluation_pictures(
    stem: Path,
    config: TrainConfig,
    data: Dataset,
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
        plot_ess(estimate.ess, estimate.spent, ess, few=MIN_ESS, title=title)
    worst = estimate.log_likelihood.nan_to_num(-math.inf).argsort()[:_PICTURED]
    evaluated = data.evaluation(report["split"])
    x = torch.cat([evaluated[i : i + 1] for i in worst.tolist()])
    labels = [f"#{i}\n{estimate.log_likelihood[i]:.1f}" for i in worst.tolist()]
    mask = data.observed(x)
    title = f"{title}: lowest log p({'x' if mask is None else 'x observed'}), in nats"
    told = config.context_of(data)
    context = None if told is None else told[report["split"]][worst]
    means = model.reconstruct(x, context=context, mask=mask)
    if data.image_shape is None:
        rows = [("x", x), ("mean", means)]
        plot_table_rows(rows, lowest, labels=labels, title=title)
        return
    shaded, means = data.shaded(x), data.shaded(means)
    plot_worst(shaded, means, labels, data.image_shape, lowest, title=title)


def run_pictures(
    console: Console, config: TrainConfig, folder: Path, metrics: dict[str, Any]
) -> list[str]:
    """The run's PNGs; their names. Without matplotlib, one line that says so."""
    model, data = load_model(folder), config.load_data()
    title = f"{config.model} on {config.data_name}"
    try:
        plot_learning_curve(metrics["history"], folder / "learning_curve.png", title=title)
        by_label = each_label(model, SAMPLED)
        _plot_samples(model, data, config, folder / "samples.png", title)
        _plot_reconstructions(model, data, config, folder / "reconstructions.png", title)
        names = ["learning_curve.png", "samples.png", "reconstructions.png"]
        has_plane = isinstance(model, LatentVariableModel) and model.has_plane
        if has_plane and data.image_shape is not None and by_label is None:
            assert isinstance(model, LatentVariableModel)
            plot_samples(
                data.shaded(model.manifold(_SIDE).flatten(0, 1)), data.image_shape,
                folder / "manifold.png", columns=_SIDE,
                title=f"{title}: the plane of two latents",
            )  # fmt: skip
            names.append("manifold.png")
    except MissingExtraError as error:
        console.print(f"No pictures: {error}", soft_wrap=True, markup=False)
        return []
    return names


def _plot_samples(
    model: Autoencoder, data: Dataset, config: TrainConfig, path: Path, title: str
) -> None:
    if data.image_shape is None:
        plot_draws(model, data, config.seed, path, title)
        return
    by_label = each_label(model, SAMPLED)
    means = model.sample(SAMPLED, seed=config.seed, context=by_label)
    plot_samples(
        data.shaded(means), data.image_shape, path,
        title=f"{title}: means of p(x|z), z from the prior{IN_ORDER * (by_label is not None)}",
    )  # fmt: skip


def plot_draws(
    model: Autoencoder,
    data: Dataset,
    seed: int,
    path: Path,
    title: str,
    n: int = _DRAWN,
    context: Tensor | None = None,
) -> None:
    """Columns of a table, and of as many draws, in the table's units."""
    some = data.evaluation("test")[:_DRAWN]
    context = each_label(model, n) if context is None else context
    draws = model.sample(n, seed=seed, draw=True, context=context)
    plot_columns(
        data.scaling.undo(some), data.scaling.undo(draws), data.columns, path,
        title=f"{title}: the test set, and draws of the model",
    )  # fmt: skip


def _plot_reconstructions(
    model: Autoencoder, data: Dataset, config: TrainConfig, path: Path, title: str
) -> None:
    told = config.context_of(data)
    context = None if told is None else told["test"][:_PICTURED]
    x = data.evaluation("test")[:_PICTURED]
    mask = data.observed(x)
    x, noisy, means = reconstructions(model, x, config.seed, context, mask)
    given = noisy if model.corruption is not None else None
    imputed = None
    if mask is not None:
        filled = model.impute(x, mask, _IMPUTED_BY, context=context, seed=config.seed)
        imputed = filled.value.float()
    title = f"{title}: test set"
    if data.image_shape is None:
        rows = [("x", x), ("x̃", given), ("reconstruction", means), ("imputed", imputed)]
        shown = [(label, values) for label, values in rows if values is not None]
        plot_table_rows(shown, path, title=title)
        return
    x, means = data.shaded(x), data.shaded(means)
    given, imputed = (None if t is None else data.shaded(t) for t in (given, imputed))
    plot_reconstructions(x, given, means, data.image_shape, path, imputed=imputed, title=title)
