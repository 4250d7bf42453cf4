"""Figures out of pytest-benchmark's JSON, and the parts a report is made of."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
#: growth of the resident set in bytes that is no more than noise
MEMORY_NOISE = 1 << 16


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
        group = groups.setdefault(row["group"], {})
        name = extra["rival"]
        figure = group.setdefault(
            name,
            Figure(
                name, extra["variant"], extra["elements"], extra["bytes"], extra["flops"], extra
            ),
        )
        figure.times += row["stats"]["data"]
        figure.turns.append(statistics.median(row["stats"]["data"]))
    return groups, content


# --- what a report is made of ---------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Columns named in `text` hold words, and are set to the left as the first is."""

    head: list[str]
    rows: list[list[str]]
    text: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Inline SVG, for the page alone."""

    svg: str


@dataclass(frozen=True)
class Section:
    """A title, or "" for what stands on top, and text, tables and charts below it."""

    title: str
    parts: tuple[str | Table | Chart, ...]


def table(head: list[str], rows: list[list[str]], text: tuple[str, ...] = ()) -> str:
    """A Markdown table: the first column and those of `text` to the left, the rest to the right."""
    rule = ["---" if i == 0 or name in text else "---:" for i, name in enumerate(head)]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def seconds(value: float) -> str:
    """Three significant digits with a unit."""
    unit, scale = "µs", 1e-6
    if value >= 1:
        unit, scale = "s", 1.0
    elif value >= 1e-3:
        unit, scale = "ms", 1e-3
    figure = value / scale
    return f"{figure:.3g} {unit}" if figure < 999.5 else f"{figure:.0f} {unit}"


def markdown(title: str, sections: list[Section]) -> str:
    """The sections without their charts."""
    parts = [f"# {title}"]
    for section in sections:
        if section.title:
            parts.append(f"## {section.title}")
        for part in section.parts:
            if isinstance(part, Table):
                parts.append(table(part.head, part.rows, part.text))
            elif isinstance(part, str):
                parts.append(part)
    return "\n\n".join(part.strip() for part in parts) + "\n"
