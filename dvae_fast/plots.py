"""Pictures of a run and of its evaluation.

Each function returns a matplotlib Figure, which a notebook shows. `path` writes it too, as what its
name ends in; `ax` draws into axes of the caller's, of ``plt.subplots`` say.
"""

from __future__ import annotations

import io
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast._extras import require
from dvae_fast._text import format_number
from dvae_fast.files import write_atomically

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREY",
    "finished",
    "image_grid",
    "new_figure",
    "panels",
    "plot_bounds",
    "plot_ess",
    "plot_filters",
    "plot_learning_curve",
    "plot_reconstructions",
    "plot_rows",
    "plot_samples",
    "plot_worst",
    "write_figure",
]

_DPI = 150
BLUE, _ORANGE, GREY, _FRAME = "#1f5fa8", "#d9730d", "#8a8a8a", "#8fa8c0"
_GAP = 3
#: channels that are red, green and blue
_COLOURS = 3


def new_figure(width: float, height: float) -> Figure:
    """A figure, in inches.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    # A Figure of one's own rather than pyplot: no window system, no global state.
    module = require("matplotlib.figure", "matplotlib", "drawing")
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained")
    # So that a notebook shows it where pyplot, which would see to that, was never imported.
    figure._repr_png_ = partial(_encoded, figure)  # type: ignore[attr-defined]
    return figure


def _encoded(figure: Figure, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    # Without its date, the same picture is the same file.
    undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata=undated.get(kind))
    return buffer.getvalue()


def write_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """As what the name ends in: png, pdf, svg.

    Raises:
        CheckpointError: if the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, _encoded(figure, path.suffix[1:].lower() or "png"))


def finished(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """The figure, written where there is a path."""
    if path is not None:
        write_figure(figure, path)
    return figure


def _check_axes(ax: Any) -> None:
    module = require("matplotlib.axes", "matplotlib", "drawing")
    if not isinstance(ax, module.Axes):
        kind = type(ax).__name__
        raise TypeError(f"ax must be one matplotlib Axes, got {kind}: take one of an array of them")


def _single(ax: Axes | None, width: float, height: float, title: str) -> tuple[Figure, Any]:
    """A figure and axes in it with a title: those given, or new ones of this size in inches."""
    if ax is None:
        figure = new_figure(width, height)
        ax = figure.add_subplot()
    else:
        _check_axes(ax)
        figure = ax.figure.figure  # that of a subfigure too
    if title:
        ax.set_title(title, fontsize=11)
    return figure, ax


def panels(
    ax: Axes | None, shape: tuple[int, int], width: float, height: float, title: str
) -> tuple[Figure, list[Any]]:
    """A figure and rows × columns axes in it, row by row: in the place of those given, or new."""
    rows, columns = shape
    if ax is None:
        figure = new_figure(width, height + (0.35 if title else 0.1))
        if title:
            figure.suptitle(title, fontsize=11)
        return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())
    figure = _single(ax, width, height, "")[0]
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError(
            "ax must be a subplot, of plt.subplots or add_subplot, for a picture of several "
            "panels; got axes that were placed by hand"
        )
    ax.set_axis_off()
    # The title has a row of its own, above those of the panels.
    ratios = [0.12] * bool(title) + [1.0] * rows
    parts = place.subgridspec(len(ratios), columns, height_ratios=ratios)
    if title:
        head = ax.figure.add_subplot(parts[0, :])
        head.set_axis_off()
        head.text(0.5, 0.5, title, fontsize=11, ha="center", va="center")
    places = [(i, j) for i in range(len(ratios) - rows, len(ratios)) for j in range(columns)]
    return figure, [ax.figure.add_subplot(parts[i, j]) for i, j in places]


def plot_learning_curve(
    history: Sequence[Mapping[str, float]],
    path: str | os.PathLike[str] | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """Training and validation bound, in nats per example, against epochs; the best one marked.

    Args:
        history: of `metrics.json`, at least one epoch.
        path: where to write the picture, as png, pdf or svg; None for nowhere.
        ax: axes to draw in. Default: those of a new figure.
        title: above it.

    Returns:
        The figure.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    ticker = require("matplotlib.ticker", "matplotlib", "drawing")
    figure, axes = _single(ax, 6.4, 4.0, title)
    epochs = [int(line["epoch"]) for line in history]
    marker = "." if len(history) < 30 else None
    for key, label, colour in (
        ("train_bound", "training", GREY),
        ("valid_bound", "validation", BLUE),
    ):
        values = [line[key] for line in history]
        axes.plot(epochs, values, label=label, color=colour, marker=marker, linewidth=1.4)
    best = max(history, key=lambda line: line["valid_bound"])
    axes.plot(
        [best["epoch"]], [best["valid_bound"]], "o", color=_ORANGE, markersize=6, zorder=3,
        label=f"best: {format_number(best['valid_bound'])} nats, epoch {int(best['epoch'])}",
    )  # fmt: skip
    low, high = _limits([line[key] for line in history for key in ("train_bound", "valid_bound")])
    axes.set_ylim(low, high)
    axes.set_xlim(max(0, epochs[0] - 0.5), epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_ylabel("bound (nats per example)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return finished(figure, path)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits that leave out the steep start, which would press the rest into one line."""
    ordered = sorted(v for v in values if math.isfinite(v))
    low, high = ordered[len(ordered) // 20], ordered[-1]
    margin = max(0.08 * (high - low), 1e-3 * abs(high), 1e-6)
    return low - margin, high + margin


def image_grid(images: Tensor, image_shape: tuple[int, ...], columns: int) -> Tensor:
    """(N, D) in [0, 1] → one image, enlarged to whole pixels, row by row; NaN between them.

    Images of shape (3, H, W) are in colour, and so is the result, (rows, columns, 3); any other
    number of channels stands side by side.
    """
    *channels, height, width = image_shape
    zoom = max(1, 56 // max(height, width))
    big = images.detach().cpu().float().clamp(0, 1).reshape(len(images), -1, height, width)
    if channels and channels[0] not in (1, _COLOURS):
        big = big.transpose(1, 2).reshape(len(images), 1, height, -1)
    big = big.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).movedim(1, -1)
    height, width, depth = big.shape[1:]
    rows = math.ceil(len(images) / columns)
    grid = torch.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, depth), math.nan,
        device="cpu",
    )  # fmt: skip
    for i, image in enumerate(big):
        top = _GAP + (i // columns) * (height + _GAP)
        left = _GAP + (i % columns) * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    return grid.squeeze(-1)


def _show(axes: Any, grid: Tensor, colormap: str = "gray") -> None:
    matplotlib = require("matplotlib", "matplotlib", "drawing")
    if grid.dim() == 3:
        colour = require("matplotlib.colors", "matplotlib", "drawing").to_rgb(_FRAME)
        frame = torch.tensor(colour, device="cpu")
        grid = torch.where(grid.isnan(), frame.to(grid.dtype), grid)
    colours = matplotlib.colormaps[colormap].with_extremes(bad=_FRAME)
    axes.imshow(grid.numpy(), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _aspect(image_shape: tuple[int, ...]) -> float:
    """Height over width."""
    return image_shape[-2] / image_shape[-1]


def _columns(count: int, aspect: float) -> int:
    """For a grid that is about square, full if that is possible without being far from it."""
    ideal = math.sqrt(count * aspect)
    full = [n for n in range(1, count + 1) if count % n == 0 and 2 / 3 < n / ideal < 3 / 2]
    if full:
        return min(full, key=lambda n: abs(math.log(n / ideal)))
    return min(count, math.ceil(ideal))


def plot_samples(
    images: Tensor,
    image_shape: tuple[int, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    columns: int | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """A grid of images (N, D), row by row; about square where `columns` are not given.

    The rest, and what is returned and raised, as for :func:`plot_learning_curve`.
    """
    columns = columns or _columns(len(images), _aspect(image_shape))
    grid = image_grid(images, image_shape, columns)
    height = 5.0 * grid.shape[0] / grid.shape[1] + (0.35 if title else 0.1)
    figure, axes = _single(ax, 5.0, height, title)
    _show(axes, grid)
    return finished(figure, path)


def plot_reconstructions(
    x: Tensor,
    noisy: Tensor | None,
    reconstruction: Tensor,
    image_shape: tuple[int, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    imputed: Tensor | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """One row each of x, x̃ (if there is one), the reconstruction, and what was imputed (if
    anything was), all (N, D); NaN, of what is missing, is in the colour of the frame.

    The rest as for :func:`plot_rows`.
    """
    rows = [("$x$", x), (r"$\tilde{x}$", noisy), ("reconstruction", reconstruction)]
    rows.append(("imputed", imputed))
    shown = [(label, images) for label, images in rows if images is not None]
    return plot_rows(shown, image_shape, path, ax=ax, title=title)


def plot_rows(
    rows: Sequence[tuple[str, Tensor]],
    image_shape: tuple[int, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """A row of images (N, D) for each short label.

    `ax` must be a subplot, in whose place the rows are. The rest, and what is returned and raised,
    as for :func:`plot_learning_curve`.
    """
    grids = [image_grid(images, image_shape, len(images)) for _, images in rows]
    width, margin = 8.0, 1.2
    row = (width - margin) * grids[0].shape[0] / grids[0].shape[1]
    figure, places = panels(ax, (len(rows), 1), width, len(rows) * (row + 0.08), title)
    for axes, (label, _), grid in zip(places, rows, grids, strict=True):
        _show(axes, grid)
        axes.set_ylabel(label, fontsize=11, rotation=0, ha="right", va="center", labelpad=8)
    return finished(figure, path)


def plot_filters(
    filters: Mapping[str, Tensor],
    image_shape: tuple[int, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """Weights of first layers as images, a panel each: blue below 0, white at 0, red above.

    Args:
        filters: (N, D) by the panel's label; each filter is scaled by its largest weight.
        others: as for :func:`plot_rows`, which tells the errors too.
    """
    height = 4.2 * _aspect(image_shape) + 0.45
    figure, places = panels(ax, (1, len(filters)), 4.2 * len(filters), height, title)
    for axes, (label, weights) in zip(places, filters.items(), strict=True):
        largest = weights.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        columns = _columns(len(weights), _aspect(image_shape))
        _show(axes, image_grid(0.5 + 0.5 * weights / largest, image_shape, columns), "RdBu_r")
        axes.set_title(label, fontsize=11)
    return finished(figure, path)


def plot_bounds(
    ks: Sequence[int],
    curve: Tensor,
    standard_error: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """The mean bound against k, with two standard errors over draws of the samples as a band.

    Args:
        ks: at least one k.
        curve, standard_error: (N, len(ks)) in nats, as in `LikelihoodEstimate`.
        others: as for :func:`plot_learning_curve`, which tells the errors too.
    """
    ticker = require("matplotlib.ticker", "matplotlib", "drawing")
    mean = curve.mean(0)
    error = standard_error.square().sum(0).sqrt() / len(curve)
    figure, axes = _single(ax, 6.4, 4.0, title)
    shown = [i for i in range(len(ks)) if math.isfinite(float(mean[i]))]
    k, m = [ks[i] for i in shown], mean[shown].numpy()
    band = 2 * error[shown].nan_to_num(0).numpy()
    axes.fill_between(k, m - band, m + band, color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(k, m, "o-", color=BLUE, linewidth=1.4, markersize=4)
    for position, value in zip(k, m.tolist(), strict=True):
        axes.annotate(
            f"{value:.2f}".replace("-", "−"), (position, value), xytext=(4, -11),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(k, [f"{one:,}" for one in k])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.margins(x=0.08, y=0.18)
    axes.set_xlabel("importance samples k")
    axes.set_ylabel("bound (nats per example)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return finished(figure, path)


def plot_ess(
    ess: Tensor,
    spent: Tensor,
    path: str | os.PathLike[str] | None = None,
    *,
    few: float,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """How many examples have how many effective samples; too few are marked.

    Args:
        ess, spent: (N,), as in `LikelihoodEstimate`.
        few: below so many an estimate is not to be trusted, `dvae_fast.evaluation.MIN_ESS`.
        others: as for :func:`plot_learning_curve`, which tells the errors too.
    """
    ticker = require("matplotlib.ticker", "matplotlib", "drawing")
    figure, axes = _single(ax, 6.4, 4.0, title)
    values = ess[ess.isfinite()].clamp(min=1)
    most = math.log10(max(float(spent.max()), 10.0))
    edges = torch.logspace(0, most, 41).numpy()
    if len(values) > 0:
        axes.hist(values.numpy(), bins=edges, color=BLUE)
        median = float(values.median())
        axes.axvline(
            median, color=_ORANGE, linewidth=1.2, label=f"median {median:,.0f} of {10**most:,.0f}"
        )
        axes.legend(frameon=False)
    axes.axvspan(1, few, color=GREY, alpha=0.15, linewidth=0, zorder=0)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    below = int((values < few).sum())
    axes.annotate(
        f"below {few:g}: {below:,} of {len(ess):,}", (0.01, 1.01), xycoords="axes fraction",
        fontsize=8,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(1, 10**most)
    axes.set_xlabel("effective samples")
    axes.set_ylabel("examples")
    axes.spines[["top", "right"]].set_visible(False)
    return finished(figure, path)


def plot_worst(
    x: Tensor,
    means: Tensor,
    labels: Sequence[str],
    image_shape: tuple[int, ...],
    path: str | os.PathLike[str] | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """Given above their reconstructions, each with a label.

    Args:
        x, means: (N, D) in [0, 1].
        labels: N, of one or two lines.
        others: as for :func:`plot_samples`, which tells the errors too.
    """
    count = len(x)
    grid = image_grid(torch.cat((x.cpu(), means.cpu())), image_shape, count)
    height = 0.85 * 2 * _aspect(image_shape) + 0.9
    figure, axes = _single(ax, 0.85 * count + 0.6, height, title)
    _show(axes, grid)
    height, width = ((n - _GAP) / m for n, m in zip(grid.shape[:2], (2, count), strict=True))
    axes.set_xticks([_GAP + width * (i + 0.5) for i in range(count)], labels, fontsize=8)
    axes.set_yticks([_GAP + height * (i + 0.5) for i in range(2)], ["x", "mean"], fontsize=8)
    axes.tick_params(length=0)
    return finished(figure, path)
