"""Figures out of pytest-benchmark's JSON, and how they are printed."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@dataclass
class Figure:
    """One rival of one group: the times of its rounds in seconds, and the work of one call."""

    rival: str
    variant: str
    elements: int
    bytes: int
    flops: int
    extra: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median."""
        if len(self.times) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return (high - low) / self.median

    @property
    def drift(self) -> float:
        """Slowest over fastest median of a turn."""
        return max(self.turns) / min(self.turns)

    def rate(self, work: str) -> float:
        """Bytes or flops a second."""
        return getattr(self, work) / self.median

    def ratio_range(self, ours: Figure) -> tuple[float, float]:
        """Least and most of this over ours, turn by turn: what moves both alike moves neither."""
        ratios = [a / b for a, b in zip(self.turns, ours.turns, strict=False)]
        ratios.append(self.median / ours.median)
        return min(ratios), max(ratios)


Groups = dict[str, dict[str, Figure]]


def load(path: Path) -> tuple[Groups, dict[str, Any]]:
    """The figures by group and rival, turns put together; and the whole file."""
    content = json.loads(path.read_text())
    groups: Groups = {}
    for row in content["benchmarks"]:
        extra = row["extra_info"]
        work = [extra[name] for name in ("rival", "variant", "elements", "bytes", "flops")]
        group = groups.setdefault(row["group"], {})
        figure = group.setdefault(extra["rival"], Figure(*work, extra))
        figure.times += row["stats"]["data"]
        figure.turns.append(statistics.median(row["stats"]["data"]))
    return groups, content


def table(head: list[str], rows: list[list[str]], text: tuple[str, ...] = ()) -> str:
    """A Markdown table: the first column and those of `text` to the left, the rest to the right."""
    rule = ["---" if i == 0 or name in text else "---:" for i, name in enumerate(head)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def seconds(value: float) -> str:
    """Three significant digits with a unit."""
    unit, scale = ("s", 1.0) if value >= 1 else ("ms", 1e-3) if value >= 1e-3 else ("µs", 1e-6)
    figure = value / scale
    return f"{figure:.3g} {unit}" if figure < 999.5 else f"{figure:.0f} {unit}"


def mebibytes(value: float) -> str:
    return f"{value / MIB:.1f} MiB"
