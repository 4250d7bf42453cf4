"""Pictures of a run: learning curve, samples, and x / x̃ / reconstruction, as PNG files."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast._extras import require
from dvae_fast.checkpoint import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["image_grid", "plot_learning_curve", "plot_reconstructions", "plot_samples"]

_DPI = 150
_BLUE, _ORANGE, _GREY, _FRAME = "#1f5fa8", "#d9730d", "#8a8a8a", "#8fa8c0"
_GAP = 3


def _figure(width: float, height: float) -> Any:
    # A Figure of one's own rather than pyplot: no window system, no global state.
    module = require("matplotlib.figure", "matplotlib", "drawing")
    return module.Figure(figsize=(width, height), layout="constrained")


def _write(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
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
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    epochs = [int(line["epoch"]) for line in history]
    marker = "." if len(history) < 30 else None
    for key, label, colour in (
        ("train_bound", "training", _GREY),
        ("valid_bound", "validation", _BLUE),
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
    _write(figure, path)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits that leave out the steep start, which would press the rest into one line."""
    ordered = sorted(v for v in values if math.isfinite(v))
    low, high = ordered[len(ordered) // 20], ordered[-1]
    margin = max(0.08 * (high - low), 1e-3 * abs(high), 1e-6)
    return low - margin, high + margin


def image_grid(images: Tensor, image_shape: tuple[int, int], columns: int) -> Tensor:
    """(N, D) in [0, 1] → one grey image, enlarged to whole pixels, row by row; NaN between them."""
    height, width = image_shape
    zoom = max(1, 56 // max(image_shape))
    big = images.detach().cpu().float().clamp(0, 1).reshape(-1, height, width)
    big = big.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    height, width = height * zoom, width * zoom
    rows = math.ceil(len(images) / columns)
    shape = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP)
    grid = torch.full(shape, math.nan)
    for i, image in enumerate(big):
        top = _GAP + (i // columns) * (height + _GAP)
        left = _GAP + (i % columns) * (width + _GAP)
        grid[top : top + height, left : left + width] = image
    return grid


def _show(axes: Any, grid: Tensor) -> None:
    colormaps = require("matplotlib", "matplotlib", "drawing").colormaps
    colours = colormaps["gray"].with_extremes(bad=_FRAME)
    axes.imshow(grid.numpy(), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _columns(count: int, aspect: float) -> int:
    """For a grid that is about square, full if that is possible without being far from it."""
    ideal = math.sqrt(count * aspect)
    full = [n for n in range(1, count + 1) if count % n == 0 and 2 / 3 < n / ideal < 3 / 2]
    if full:
        return min(full, key=lambda n: abs(math.log(n / ideal)))
    return min(count, math.ceil(ideal))


def plot_samples(
    images: Tensor, image_shape: tuple[int, int], path: Path, *, title: str = ""
) -> None:
    """A square-ish grid of images (N, D). Raises as :func:`plot_learning_curve`."""
    columns = _columns(len(images), image_shape[0] / image_shape[1])
    grid = image_grid(images, image_shape, columns)
    figure = _figure(5.0, 5.0 * grid.shape[0] / grid.shape[1] + (0.35 if title else 0.1))
    axes = figure.add_subplot()
    _show(axes, grid)
    if title:
        axes.set_title(title, fontsize=11)
    _write(figure, path)


def plot_reconstructions(
    x: Tensor,
    noisy: Tensor | None,
    reconstruction: Tensor,
    image_shape: tuple[int, int],
    path: Path,
    *,
    title: str = "",
) -> None:
    """One row each of x, x̃ (if there is one) and the reconstruction, all (N, D).

    Raises as :func:`plot_learning_curve`.
    """
    rows = [("$x$", x), (r"$\tilde{x}$", noisy), ("reconstruction", reconstruction)]
    shown = [(label, images) for label, images in rows if images is not None]
    grids = [image_grid(images, image_shape, len(images)) for _, images in shown]
    width, margin = 8.0, 1.2
    row = (width - margin) * grids[0].shape[0] / grids[0].shape[1]
    figure = _figure(width, len(shown) * (row + 0.08) + (0.35 if title else 0.1))
    for axes, (label, _), grid in zip(
        figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, grids, strict=True
    ):
        _show(axes, grid)
        axes.set_ylabel(label, fontsize=11, rotation=0, ha="right", va="center", labelpad=8)
    if title:
        figure.suptitle(title, fontsize=11)
    _write(figure, path)
