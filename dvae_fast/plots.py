"""Pictures of a run and of its evaluation, as PNG files."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast._extras import require
from dvae_fast.evaluation import MIN_ESS
from dvae_fast.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "BLUE",
    "GREY",
    "image_grid",
    "new_figure",
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


def new_figure(width: float, height: float) -> Any:
    """A figure, in inches."""
    # A Figure of one's own rather than pyplot: no window system, no global state.
    module = require("matplotlib.figure", "matplotlib", "drawing")
    return module.Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Any, path: Path) -> None:
    """As what the name ends in: png, pdf, svg."""
    buffer, kind = io.BytesIO(), path.suffix[1:].lower() or "png"
    # Without its date, the same picture is the same file.
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    figure.savefig(buffer, format=kind, dpi=_DPI, metadata=undated.get(kind))
    write_atomically(path, buffer.getvalue())


def plot_learning_curve(
    history: Sequence[Mapping[str, float]], path: Path, *, title: str = ""
) -> None:
    """Training and validation bound, in nats per example, against epochs; the best one marked.

    Args:
        history: of `metrics.json`, at least one epoch.
        path: where to write the PNG.

    Raises:
        MissingExtraError: if matplotlib is not installed.
        CheckpointError: if the file cannot be written.
    """
    ticker = require("matplotlib.ticker", "matplotlib", "drawing")
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
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
        label=f"best: {best['valid_bound']:.2f} nats, epoch {int(best['epoch'])}",
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
    if title:
        axes.set_title(title, fontsize=11)
    write_figure(figure, path)


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
    path: Path,
    *,
    columns: int | None = None,
    title: str = "",
) -> None:
    """A grid of images (N, D), row by row; about square where `columns` are not given.

    Raises as :func:`plot_learning_curve`.
    """
    columns = columns or _columns(len(images), _aspect(image_shape))
    grid = image_grid(images, image_shape, columns)
    figure = new_figure(5.0, 5.0 * grid.shape[0] / grid.shape[1] + (0.35 if title else 0.1))
    axes = figure.add_subplot()
    _show(axes, grid)
    if title:
        axes.set_title(title, fontsize=11)
    write_figure(figure, path)


def plot_reconstructions(
    x: Tensor,
    noisy: Tensor | None,
    reconstruction: Tensor,
    image_shape: tuple[int, ...],
    path: Path,
    *,
    imputed: Tensor | None = None,
    title: str = "",
) -> None:
    """One row each of x, x̃ (if there is one), the reconstruction, and what was imputed (if
    anything was), all (N, D); NaN, of what is missing, is in the colour of the frame.

    Raises as :func:`plot_learning_curve`.
    """
    rows = [("$x$", x), (r"$\tilde{x}$", noisy), ("reconstruction", reconstruction)]
    rows.append(("imputed", imputed))
    shown = [(label, images) for label, images in rows if images is not None]
    plot_rows(shown, image_shape, path, title=title)


def plot_rows(
    rows: Sequence[tuple[str, Tensor]],
    image_shape: tuple[int, ...],
    path: Path,
    *,
    title: str = "",
) -> None:
    """A row of images (N, D) for each short label. Raises as :func:`plot_learning_curve`."""
    grids = [image_grid(images, image_shape, len(images)) for _, images in rows]
    width, margin = 8.0, 1.2
    row = (width - margin) * grids[0].shape[0] / grids[0].shape[1]
    figure = new_figure(width, len(rows) * (row + 0.08) + (0.35 if title else 0.1))
    for axes, (label, _), grid in zip(
        figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, grids, strict=True
    ):
        _show(axes, grid)
        axes.set_ylabel(label, fontsize=11, rotation=0, ha="right", va="center", labelpad=8)
    if title:
        figure.suptitle(title, fontsize=11)
    write_figure(figure, path)


def plot_filters(
    filters: Mapping[str, Tensor], image_shape: tuple[int, ...], path: Path, *, title: str = ""
) -> None:
    """Weights of first layers as images, a panel each: blue below 0, white at 0, red above.

    Args:
        filters: (N, D) by the panel's label; each filter is scaled by its largest weight.
        image_shape, path, title: as for :func:`plot_samples`, which tells the errors too.
    """
    figure = new_figure(4.2 * len(filters), 4.2 * _aspect(image_shape) + 0.8)
    for axes, (label, weights) in zip(
        figure.subplots(1, len(filters), squeeze=False)[0], filters.items(), strict=True
    ):
        largest = weights.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        columns = _columns(len(weights), _aspect(image_shape))
        _show(axes, image_grid(0.5 + 0.5 * weights / largest, image_shape, columns), "RdBu_r")
        axes.set_title(label, fontsize=11)
    if title:
        figure.suptitle(title, fontsize=11)
    write_figure(figure, path)


def plot_bounds(
    ks: Sequence[int], curve: Tensor, standard_error: Tensor, path: Path, *, title: str = ""
) -> None:
    """The mean bound against k, with two standard errors over draws of the samples as a band.

    Args:
        ks: at least one k.
        curve, standard_error: (N, len(ks)) in nats, as in `LikelihoodEstimate`.
        path, title: as for :func:`plot_learning_curve`, which tells the errors too.
    """
    ticker = require("matplotlib.ticker", "matplotlib", "drawing")
    mean = curve.mean(0)
    error = standard_error.square().sum(0).sqrt() / len(curve)
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
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
    if title:
        axes.set_title(title, fontsize=11)
    write_figure(figure, path)


def plot_ess(ess: Tensor, spent: Tensor, path: Path, *, title: str = "") -> None:
    """How many examples have how many effective samples; below 10 marked as not to be trusted.

    Args:
        ess, spent: (N,), as in `LikelihoodEstimate`.
        path, title: as for :func:`plot_learning_curve`, which tells the errors too.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
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
    axes.axvspan(1, MIN_ESS, color=GREY, alpha=0.15, linewidth=0)
    few = int((values < MIN_ESS).sum())
    axes.annotate(
        f"below {MIN_ESS:g}: {few:,} of {len(ess):,}", (0.01, 1.01), xycoords="axes fraction",
        fontsize=8,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(1, 10**most)
    axes.set_xlabel("effective samples")
    axes.set_ylabel("examples")
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=11)
    write_figure(figure, path)


def plot_worst(
    x: Tensor,
    means: Tensor,
    labels: Sequence[str],
    image_shape: tuple[int, ...],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Given above their reconstructions, each with a label.

    Args:
        x, means: (N, D) in [0, 1].
        labels: N, of one or two lines.
        image_shape, path, title: as for :func:`plot_samples`, which tells the errors too.
    """
    count = len(x)
    grid = image_grid(torch.cat((x.cpu(), means.cpu())), image_shape, count)
    figure = new_figure(0.85 * count + 0.6, 0.85 * 2 * _aspect(image_shape) + 0.9)
    axes = figure.add_subplot()
    _show(axes, grid)
    height, width = ((n - _GAP) / m for n, m in zip(grid.shape[:2], (2, count), strict=True))
    axes.set_xticks([_GAP + width * (i + 0.5) for i in range(count)], labels, fontsize=8)
    axes.set_yticks([_GAP + height * (i + 0.5) for i in range(2)], ["x", "mean"], fontsize=8)
    axes.tick_params(length=0)
    if title:
        axes.set_title(title, fontsize=11)
    write_figure(figure, path)
