"""The growth study: what a unit of work costs at each size, and where that is not flat.

Reads what pytest-benchmark wrote for `bench_growth.py`. Flat is good: cost grows with work. Where
two neighbouring sizes differ by more than `FLAT`, the step is named, with its cause where it
is one of those known here.
"""

from __future__ import annotations

import math
import statistics
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from figures import MIB, Figure, Groups, mebibytes, seconds, table
from scipy import optimize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: growth of the resident set in bytes that is no more than noise
MEMORY_NOISE = 1 << 16
#: neighbouring sizes whose costs differ by no more are called flat
FLAT = 1.25
#: elements from which the kernels wake a second thread (kGrain in csrc/torch/cpu/rows.h)
GRAIN = 16384
#: what starting a team of threads may take of a call, in seconds: 6 to 8 µs of calls that follow
#: one another, measured around the grain on two cores of a Xeon
WAKE = 20e-6
#: blocks larger than this are never kept by glibc, and cost page faults at each call
KEPT_BLOCK = 32 * MIB
#: axes of `bench_growth.py` that are no sizes
CONDITIONS = ("threads", "dtype")


class Machine(NamedTuple):
    """What decides where steps are: threads, and bytes of the caches they share or own."""

    threads: int = 1
    caches: Mapping[str, int] = {}


class Point(NamedTuple):
    """One size: the figure, and its cost in ns a unit of work."""

    value: Any
    figure: Figure
    unit: str

    @property
    def time(self) -> float:
        return self.figure.median

    @property
    def work(self) -> float:
        return self.figure.flops / 1e3 if self.unit == "kFLOP" else self.figure.elements

    @property
    def cost(self) -> float:
        return self.time / self.work * 1e9

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
        """Of log time over log size, 1 where they are proportional; of all sizes or the last."""
        points = self.points[-last:]
        return slope([p.value for p in points], [p.time for p in points])

    def fixed(self) -> tuple[float, float] | None:
        """a and b of time ≈ a + b · work, in seconds and seconds a unit, both >= 0.

        Least squares of the relative errors, over the sizes up to the one of least cost: past it,
        something other than a fixed cost tells. None of fewer than three, which fit anything.
        """
        least = min(range(len(self.points)), key=lambda i: self.points[i].cost)
        points = self.points[: least + 1]
        if len(points) < 3:
            return None
        # Σ (a u + b v − 1)², u = 1/time, v = work/time, in units that make both alike
        time, work = points[0].time, points[0].work
        rows = [[time / p.time, p.work / work * time / p.time] for p in points]
        a, b = optimize.nnls(rows, [1.0] * len(rows))[0].tolist()
        return a * time, b * time / work


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


def machine_of(content: dict[str, Any]) -> Machine:
    """Threads and caches of the machine a file was measured on."""
    setting = content["machine_info"]["measured_with"]
    return Machine(setting["threads"], setting["cpu"]["caches"])


# --- where it is not flat -------------------------------------------------------------------------


class Step(NamedTuple):
    """Two neighbouring sizes whose costs differ, and why, or ""."""

    before: Point
    after: Point
    cause: str


def steps(one: Series, machine: Machine) -> list[Step]:
    """Where the cost of a unit changes by more than `FLAT` from one size to the next."""
    return [
        Step(a, b, cause(one, a, b, machine))
        for a, b in pairwise(one.points)
        if not 1 / FLAT <= b.cost / a.cost <= FLAT
    ]


def cause(one: Series, a: Point, b: Point, machine: Machine) -> str:
    """The first known cause that fits, by the sizes on both sides; "" where none does."""
    ratio = b.cost / a.cost
    woken = a.figure.elements <= GRAIN < b.figure.elements and machine.threads > 1
    if ratio < 1:
        fitted = one.fixed()
        expected = 1.0
        if fitted is not None and fitted[0] > 0:
            fixed, each = fitted
            expected = (fixed / b.work + each) / (fixed / a.work + each)
            if 1 / FLAT <= ratio / expected <= FLAT:
                return f"fixed cost of a call, {seconds(fixed)} of {seconds(a.time)}"
        if woken and expected / (machine.threads * FLAT) <= ratio <= expected * FLAT:
            return f"{machine.threads} threads share the work above {GRAIN:,} elements"
        return ""
    if woken:
        more = (b.cost - a.cost) * b.work * 1e-9
        if more <= WAKE:
            return f"threads are woken above {GRAIN:,} elements, {seconds(more)}"
    for name, size in machine.caches.items():
        whole = size if name == "L3" else size * machine.threads
        if a.bytes <= whole < b.bytes:
            return f"the data leave {name}, {whole / MIB:.3g} MiB"
    if a.bytes <= KEPT_BLOCK < b.bytes:
        return "blocks above 32 MiB are fresh memory at each call"
    return ""


# --- tables ---------------------------------------------------------------------------------------


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


def step_rows(found: list[Series], machine: Machine) -> list[list[str]]:
    """Ours alone: others are not this study's to explain."""
    rows = []
    for one in found:
        for a, b, cause in steps(one, machine) if one.who == "ours" else ():
            changes = [f"{a.value} → {b.value}", f"{a.cost:.3g} → {b.cost:.3g}"]
            why = cause or "**not explained**"
            rows.append([one.operator, one.axis, *changes, f"{b.cost / a.cost:.2f}", why])
    return rows


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


def thread_rows(found: list[Series]) -> list[list[str]]:
    """Speed-up over one thread."""
    return [
        [one.operator, one.who, seconds(alone.time), str(p.value), seconds(p.time),
         f"{alone.time / p.time:.2f}×"]
        for one in found if one.axis == "threads"
        for alone, p in zip([one.points[0]] * len(one.points), one.points[1:])  # noqa: B905
    ]  # fmt: skip


def dtype_rows(found: list[Series]) -> list[list[str]]:
    """Cost of each dtype, and against float32."""
    rows = []
    for one in (one for one in found if one.axis == "dtype"):
        costs = {str(p.value): p.cost for p in one.points}
        base = costs.get("float32", math.nan)
        rows += [
            [one.operator, one.who, t, f"{c:.3g}", f"{c / base:.2f}"] for t, c in costs.items()
        ]
    return rows


def parts(content: dict[str, Any], groups: Groups, memory: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth, where it is not flat, threads and dtypes, for the report."""
    found = series(groups)
    sizes = [one for one in found if one.axis not in CONDITIONS]
    rows = step_rows(sizes, machine_of(content))
    step_head = ["operator", "over", "sizes", "ns a unit", "ratio", "cause"]
    memory_head = ["operator", "over", "slope of peak memory", "least", "most"]
    out = {
        "slopes": slope_table(sizes),
        "memory_slopes": table(memory_head, memory_rows(memory), ("over",)),
        "flat": FLAT,
        "steps": len(rows),
        "unexplained": sum(1 for row in rows if row[-1].startswith("**")),
        "step_table": table(step_head, rows, ("over", "sizes", "cause")),
    }
    for name, rows, *head in (
        ("threads", thread_rows(found), "1 thread", "threads", "time", "speed-up"),
        ("dtypes", dtype_rows(found), "dtype", "ns/element", "of float32"),
    ):
        if rows:
            out[name] = table(["operator", "who", *head], rows, ("who", "dtype"))
    return out
