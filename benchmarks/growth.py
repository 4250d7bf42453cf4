"""The growth study: what a unit of work costs at each size, and where that is not flat.

Reads what pytest-benchmark wrote for `bench_growth.py`. Flat is good: cost grows with work. Where
two neighbouring sizes differ by more than `FLAT`, the step is named, with the data on both sides
of it: beside the caches and threads of the machine, that mostly tells why.
"""

from __future__ import annotations

import math
import statistics
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from figures import Figure, Groups, mebibytes, seconds, table

if TYPE_CHECKING:
    from collections.abc import Sequence

#: growth of the resident set in bytes that is no more than noise
MEMORY_NOISE = 1 << 16
#: neighbouring sizes whose costs differ by no more are called flat
FLAT = 1.25
#: axes of `bench_growth.py` that are no sizes
CONDITIONS = ("threads", "dtype")


class Point(NamedTuple):
    """One size: the figure, and its cost in ns a unit of work."""

    value: Any
    figure: Figure
    unit: str

    @property
    def work(self) -> float:
        return self.figure.flops / 1e3 if self.unit == "kFLOP" else self.figure.elements

    @property
    def cost(self) -> float:
        return self.figure.median / self.work * 1e9

    @property
    def bytes(self) -> int:
        """The data a call goes through, at least."""
        return max(self.figure.bytes, 4 * self.figure.elements)


class Series(NamedTuple):
    """One operator over one axis, ours or another's."""

    operator: str
    axis: str
    who: str
    unit: str
    points: tuple[Point, ...]

    def slope(self, last: int = 0) -> float:
        """Of log time over log size, or over log operations where those are counted; of all sizes
        or the last. 1 where they are proportional."""
        points = self.points[-last:]
        sizes = [p.work if self.unit == "kFLOP" else p.value for p in points]
        return slope(sizes, [p.figure.median for p in points])


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least squares of log y over log x; NaN of fewer than two points."""
    if len(x) < 2:
        return math.nan
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    return statistics.linear_regression(u, v).slope


def series(groups: Groups) -> list[Series]:
    """The growth series among the figures, sizes in order, in the order measured."""
    found: dict[tuple[str, ...], list[Point]] = {}
    for figure in (figure for group in groups.values() for figure in group.values()):
        extra = figure.extra
        if "axis" in extra:
            key = tuple(extra[name] for name in ("operator", "axis", "who", "unit"))
            found.setdefault(key, []).append(Point(extra["value"], figure, extra["unit"]))
    return [
        Series(*key, tuple(points if key[1] == "dtype" else sorted(points, key=lambda p: p.value)))
        for key, points in found.items()
    ]


def steps(one: Series) -> list[tuple[Point, Point]]:
    """Neighbouring sizes between which the cost of a unit changes by more than `FLAT`."""
    return [(a, b) for a, b in pairwise(one.points) if not 1 / FLAT <= b.cost / a.cost <= FLAT]


def _named(one: Series) -> str:
    return one.operator if one.who == "ours" else f"{one.operator}, {one.who}"


def slope_table(found: list[Series]) -> str:
    head = ["operator", "over", "sizes", "slope", "last three", "ns a unit, least", "most", "unit"]
    rows = []
    for one in found:
        costs = [p.cost for p in one.points]
        sizes = f"{one.points[0].value}–{one.points[-1].value}"
        slopes = [f"{slope:.2f}" for slope in (one.slope(), one.slope(last=3))]
        bounds = [f"{cost:.3g}" for cost in (min(costs), max(costs))]
        rows.append([_named(one), one.axis, sizes, *slopes, *bounds, one.unit])
    return table(head, rows, ("over",))


def step_rows(found: list[Series]) -> list[list[str]]:
    """Ours alone: others are not this study's to explain."""
    return [
        [one.operator, one.axis, f"{a.value} → {b.value}", f"{a.cost:.3g} → {b.cost:.3g}",
         f"{b.cost / a.cost:.2f}", f"{mebibytes(a.bytes)} → {mebibytes(b.bytes)}"]
        for one in found if one.who == "ours" for a, b in steps(one)
    ]  # fmt: skip


def memory_rows(memory: list[dict[str, Any]]) -> list[list[str]]:
    """Slopes of peak memory, of series of three sizes or more."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for row in memory:
        if row["resident"] >= MEMORY_NOISE:
            who = "" if row["who"] == "ours" else f", {row['who']}"
            peaks = found.setdefault((row["operator"] + who, row["axis"]), {})
            peaks[row["value"]] = row["resident"]
    return [
        [*names, f"{slope([*peaks], [*peaks.values()]):.2f}",
         *map(mebibytes, (min(peaks.values()), max(peaks.values())))]
        for names, peaks in found.items() if len(peaks) >= 3
    ]  # fmt: skip


def condition_rows(found: list[Series]) -> dict[str, list[list[str]]]:
    """The speed-up over one thread, and the cost of each dtype and against float32."""
    rows: dict[str, list[list[str]]] = {"threads": [], "dtype": []}
    for one in (one for one in found if one.axis in rows):
        first, *others = one.points
        for p in others if one.axis == "threads" else one.points:
            times = first.figure.median, p.figure.median
            shown = [seconds(times[0]), str(p.value), seconds(times[1])]
            shown.append(f"{times[0] / times[1]:.2f}×")
            if one.axis == "dtype":  # of which float32 is the first
                shown = [str(p.value), f"{p.cost:.3g}", f"{p.cost / first.cost:.2f}"]
            rows[one.axis].append([one.operator, one.who, *shown])
    return rows


def parts(groups: Groups, memory: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth, where it is not flat, threads and dtypes, for the report."""
    found = series(groups)
    sizes = [one for one in found if one.axis not in CONDITIONS]
    rows = step_rows(sizes)
    step_head = ["operator", "over", "sizes", "ns a unit", "ratio", "data"]
    memory_head = ["operator", "over", "slope of peak memory", "least", "most"]
    out = {
        "slopes": slope_table(sizes),
        "memory_slopes": table(memory_head, memory_rows(memory), ("over",)),
        "flat": FLAT,
        "steps": len(rows),
        "step_table": table(step_head, rows, ("over", "sizes")),
    }
    conditions = condition_rows(found)
    for name, *head in (
        ("threads", "1 thread", "threads", "time", "speed-up"),
        ("dtype", "dtype", "ns/element", "of float32"),
    ):
        if conditions[name]:
            out[name] = table(["operator", "who", *head], conditions[name], ("who", "dtype"))
    return out
