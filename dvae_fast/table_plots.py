"""Pictures of tables: their columns and their rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast._extras import require
from dvae_fast.plots import BLUE, GREY, finished, panels

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_columns", "plot_table_rows"]

_PANELS = 12
_BINS = 40
_MISSING = "#d0d0d0"


def plot_columns(
    x: Tensor | None,
    draws: Tensor,
    columns: Sequence[str],
    path: str | os.PathLike[str] | None = None,
    *,
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """Histograms of columns: of the data, grey, and of what a model draws, blue.

    Args:
        x, draws: (N, D) and (n, D); None where the data are not there.
        columns: names of the D; may be empty.
        others: as for `dvae_fast.plots.plot_rows`, which tells the errors too.

    Of more than twelve columns, those that vary most.
    """
    shown = draws if x is None else x
    count = min(_PANELS, shown.shape[1])
    shown = shown.double()
    variances = (shown - shown.nanmean(0)).square().nanmean(0).nan_to_num()
    places = variances.topk(count).indices.sort().values.tolist()
    wide = min(4, count)
    tall = -(-count // wide)
    figure, shapes = panels(ax, (tall, wide), 2.4 * wide, 1.9 * tall, title)
    for axes in shapes[count:]:
        axes.set_visible(False)
    for axes, place in zip(shapes, places, strict=False):
        parts = [(x, "data", GREY), (draws, "drawn", BLUE)]
        values = [
            (_there(part[:, place]), label, colour)
            for part, label, colour in parts
            if part is not None
        ]
        values = [one for one in values if len(one[0])]
        if not values:
            continue
        edges = _edges(values[0][0])
        for value, label, colour in values:
            weights = torch.full_like(value, 1 / len(value))
            inside = value.clamp(edges[0], edges[-1])
            filled = {"color": colour, "alpha": 0.5} if colour == GREY else {
                "color": colour, "histtype": "step", "linewidth": 1.3,
            }  # fmt: skip
            axes.hist(inside.numpy(), edges.numpy(), weights=weights.numpy(), label=label, **filled)
        axes.set_title(columns[place] if columns else f"column {place}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    shapes[0].legend(frameon=False, fontsize=7)
    return finished(figure, path)


def _there(values: Tensor) -> Tensor:
    """All but NaN, which is what is missing."""
    values = values.double().cpu()
    return values[~values.isnan()]


def _edges(values: Tensor) -> Tensor:
    """Of bins over all but the tails, one each of few whole numbers."""
    double: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    low, high = values.quantile(torch.tensor([0.005, 0.995], **double)).tolist()
    if bool((values == values.round()).all()):
        step = max(1, round((high - low) / _BINS))
        return torch.arange(low - 0.5, high + step + 0.5, step, **double)
    return torch.linspace(low, high if high > low else low + 1, _BINS + 1, **double)


def plot_table_rows(
    rows: Sequence[tuple[str, Tensor]],
    path: str | os.PathLike[str] | None = None,
    *,
    labels: Sequence[str] = (),
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """Rows of tables as bands of colour, a panel for each label; each column in its own range.

    Args:
        rows: labels, and (n, D) each; NaN, of what is missing, is grey.
        labels: n, one for each row of every panel.
        others: as for `dvae_fast.plots.plot_rows`, which tells the errors too.
    """
    matplotlib = require("matplotlib", "matplotlib", "drawing")
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=_MISSING)
    first = rows[0][1].double().cpu()
    there = ~first.isnan()
    low = first.masked_fill(~there, math.inf).amin(0)
    span = first.masked_fill(~there, -math.inf).amax(0) - low
    span = span.clamp(min=torch.finfo(torch.float64).tiny)
    height = len(rows) * (0.13 * len(first) + 0.3)
    figure, bands = panels(ax, (len(rows), 1), 8.0, height, title)
    for axes, (label, values) in zip(bands, rows, strict=True):
        values = values.double().cpu()
        shades = ((values - low) / span).nan_to_num().clamp(0, 1)
        shades = shades.masked_fill(values.isnan(), math.nan)
        axes.imshow(
            shades.numpy(), cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        axes.set_xticks([])
        axes.set_yticks(
            range(len(labels)), [label.replace("\n", " ") for label in labels], fontsize=6
        )
        axes.set_ylabel(label, fontsize=10)
    return finished(figure, path)
