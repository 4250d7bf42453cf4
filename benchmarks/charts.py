"""The report's charts, as SVG that takes its text colour from the page it stands in.

Everything is drawn in `INK`, which `svg` turns into ``currentColor``: light pages and dark ones
each give their own. The colours of data are of middling lightness, readable on both.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import matplotlib
from figures import MEMORY_NOISE, MIB
from matplotlib.figure import Figure as Plot

if TYPE_CHECKING:
    from figures import Groups
    from growth import Series

INK = "#123456"
COLOURS = {"ours": "#2b8ae0", "eager": "#e0792b", "compile": "#3fa55b"}
OTHERS = ("#b565c9", "#c9a227", "#d6506a", "#4db6ac", "#8d8d8d")

STYLE = {
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.titlesize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def svg(plot: Plot, label: str) -> str:
    """Inline SVG without its XML header, with the page's text colour, as wide as its place."""
    out = io.StringIO()
    # The salt keeps the ids of one page's charts apart, and a chart the same from run to run.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        plot.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    width = re.search(r'width="([\d.]+)pt"', text)
    assert width is not None
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    # Titles are plain text here: no sign of HTML is among them.
    wide = f"max-width:{float(width[1]) * 4 / 3:.0f}px"
    start = f'<svg role="img" aria-label="{label}" style="{wide}"'
    return text.replace("<svg", start, 1)


def colour(rival: str, others: list[str]) -> str:
    """Ours, eager and compile always have theirs; the rest by their place among `others`."""
    if rival in COLOURS:
        return COLOURS[rival]
    if rival not in others:
        others.append(rival)
    return OTHERS[others.index(rival) % len(OTHERS)]


def _rows(ax: Any, names: list[str]) -> None:
    """Names of groups down the left, first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")


def ratios(groups: Groups) -> str:
    """How many times as long as ours each rival takes; the bar goes from turn to turn."""
    kept = {n: g for n, g in groups.items() if "ours" in g and len(g) > 1}
    with matplotlib.rc_context(STYLE):
        plot = Plot(figsize=(11, 1.2 + 0.36 * len(kept)), layout="constrained")
        ax = plot.add_subplot()
        others: list[str] = []
        seen = set()
        for row, group in enumerate(kept.values()):
            ours = group["ours"]
            for figure in group.values():
                if figure.rival == "ours":
                    continue
                low, high = figure.ratio_range(ours)
                ratio = figure.median / ours.median
                ax.errorbar(
                    ratio,
                    row,
                    xerr=[[max(0.0, ratio - low)], [max(0.0, high - ratio)]],
                    fmt="o",
                    markersize=6,
                    capsize=3,
                    color=colour(figure.rival, others),
                    label=figure.rival if figure.rival not in seen else None,
                )
                seen.add(figure.rival)
        ax.axvline(1, color=COLOURS["ours"], linewidth=1.5, label="ours")
        ax.set_xscale("log")
        _rows(ax, list(kept))
        _plain_ticks(ax.xaxis)
        ax.set_xlabel("time over ours (times; right of 1 ours is faster)")
        plot.legend(loc="outside upper center", ncols=5)
        return svg(plot, "Time of each rival over ours")


def _plain_ticks(axis: Any) -> None:
    """1, 2, 5, 10 rather than powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def roofline(groups: Groups, work: str) -> str:
    """Rates of `work`, "bytes" or "flops", under what the machine did at best in the same run.

    "" where no group has any.
    """
    kept = {
        name: [f for f in group.values() if f.rival in COLOURS and getattr(f, work)]
        for name, group in groups.items()
        if name != "ceilings" and "ours" in group
    }
    kept = {name: figures for name, figures in kept.items() if figures}
    if not kept:
        return ""
    unit = "GB/s" if work == "bytes" else "GFLOP/s"
    with matplotlib.rc_context(STYLE):
        plot = Plot(figsize=(11, 1.4 + 0.34 * len(kept)), layout="constrained")
        ax = plot.add_subplot()
        seen = set()
        for row, figures in enumerate(kept.values()):
            for figure in figures:
                ax.plot(
                    getattr(figure, work) / figure.median / 1e9,
                    row,
                    "o",
                    color=COLOURS[figure.rival],
                    label=figure.rival if figure.rival not in seen else None,
                )
                seen.add(figure.rival)
        styles = iter(("-", "--", ":"))
        for figure in groups.get("ceilings", {}).values():
            if amount := getattr(figure, work):
                rate = amount / figure.median / 1e9
                name = f"{figure.rival}: {rate:.3g} {unit}"
                ax.axvline(rate, color=INK, linestyle=next(styles), linewidth=1.2, label=name)
        ax.set_xscale("log")
        _plain_ticks(ax.xaxis)
        _rows(ax, list(kept))
        ax.set_xlabel(f"{unit} (lines: the machine's ceilings, measured in the same run)")
        plot.legend(loc="outside upper center", ncols=5)
        return svg(plot, f"{unit} against the machine's ceilings")


def growth(operator: str, found: list[Series], memory: list[dict[str, Any]]) -> str:
    """Time, cost of a unit, and peak memory of one operator over each of its sizes."""
    mine = [s for s in found if s.operator == operator and s.axis not in ("threads", "dtype")]
    axes = list(dict.fromkeys(s.axis for s in mine))
    rows = 3 if any(m["operator"] == operator for m in memory) else 2
    with matplotlib.rc_context(STYLE):
        plot = Plot(figsize=(max(5.5, 2.9 * len(axes)), 2.3 * rows + 0.5), layout="constrained")
        grid = plot.subplots(rows, len(axes), squeeze=False, sharex="col", sharey="row")
        for ax in grid.flat:
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_autoscaley_on(False)  # fails of a flat line; the limits are set below
        for column, axis in zip(grid.T, axes, strict=True):
            for s in mine:
                if s.axis != axis:
                    continue
                values = [p.value for p in s.points]
                style = {"color": COLOURS[s.who], "marker": "o", "markersize": 4}
                label = s.who if axis == axes[0] else None
                column[0].plot(values, [p.time * 1e3 for p in s.points], label=label, **style)
                column[1].plot(values, [p.cost for p in s.points], **style)
            slopes = ", ".join(f"{s.who} {s.slope():.2f}" for s in mine if s.axis == axis)
            column[0].set_title(f"over {axis}; slope {slopes}", fontsize=9)
            if rows == 3:
                for who in ("ours", "eager"):
                    points = [
                        (m["value"], m["resident"] / MIB)
                        for m in memory
                        if (m["operator"], m["axis"], m["who"]) == (operator, axis, who)
                        and m["resident"] >= MEMORY_NOISE
                    ]
                    if points:
                        style = {"color": COLOURS[who], "marker": "o", "markersize": 4}
                        column[2].plot(*zip(*points, strict=True), **style)
            values = sorted({p.value for s in mine if s.axis == axis for p in s.points})
            column[-1].set_xticks(values, [str(v) for v in values])
            column[-1].minorticks_off()
            column[-1].set_xlabel(axis)
        grid[0][0].set_ylabel("ms a call")
        grid[1][0].set_ylabel(f"ns a{'n' if mine[0].unit[0] == 'e' else ''} {mine[0].unit}")
        if rows == 3:
            grid[2][0].set_ylabel("peak memory, MiB")
        for row in grid:  # shared along a row, with room where all is flat
            drawn = [y for ax in row for line in ax.lines for y in line.get_ydata()]
            if drawn:
                row[0].set_ylim(min(drawn) / 1.5, max(drawn) * 1.5)
            _plain_ticks(row[0].yaxis)
        plot.suptitle(operator, x=0.01, ha="left", weight="bold")
        plot.legend(loc="outside upper right", ncols=2)
        return svg(plot, f"Growth of {operator}")


def bars(found: list[Series], axis: str) -> str:
    """Speed-up over one thread, or cost over float32's, of each operator."""
    mine = [s for s in found if s.axis == axis]
    names = list(dict.fromkeys(s.operator for s in mine))
    values = list(dict.fromkeys(p.value for s in mine for p in s.points))
    base, values = ("float32", values) if axis == "dtype" else (values[0], values[1:])
    with matplotlib.rc_context(STYLE):
        who = [w for w in ("ours", "eager") if any(s.who == w for s in mine)]
        bars_each = len(who) * len(values)
        height = 1.2 + 0.16 * len(names) * (bars_each + 1)
        plot = Plot(figsize=(9, height), layout="constrained")
        ax = plot.add_subplot()
        thick = 0.8 / bars_each
        seen = set()
        for s in mine:
            at = {p.value: p.cost for p in s.points}
            for place, value in enumerate(values):
                if value not in at or base not in at:
                    continue
                ratio = at[value] / at[base] if axis == "dtype" else at[base] / at[value]
                row = names.index(s.operator) - 0.4
                label = f"{s.who}, {value}" + (" threads" if axis == "threads" else "")
                y = row + thick * (who.index(s.who) * len(values) + place + 0.5)
                ax.barh(
                    y,
                    ratio,
                    0.92 * thick,
                    color=COLOURS[s.who],
                    alpha=1 - 0.22 * place,
                    label=label if label not in seen else None,
                )
                ax.text(ratio, y, f" {ratio:.2f}", va="center", fontsize=7)
                seen.add(label)
        ax.axvline(1, color=INK, linewidth=1)
        _rows(ax, names)
        ax.set_xlabel(
            "cost of an element over float32's (times)"
            if axis == "dtype"
            else "speed-up over one thread (times)"
        )
        plot.legend(loc="outside upper center", ncols=4)
        return svg(plot, "Cost by dtype" if axis == "dtype" else "Speed-up of threads")
