"""What a short run of a row should give: kept numbers of many seeds, and their intervals.

Kept are all figures of seeds 1 to 20 of two rows at the scale ``check``; seed 0 is left for
whoever checks. `docs/expectations.py` writes the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from dvae_fast._checks import check_choice
from dvae_fast._extras import require
from dvae_fast.reproduction.rows import FIGURES, ROWS, SCALES
from dvae_fast.reproduction.runs import differing, plan
from dvae_fast.reproduction.table import mean_and_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dvae_fast.reproduction.runs import Run

__all__ = [
    "FALSE_ALARMS", "FILE", "SCALE", "Held", "expected_rows", "held", "interval", "kept",
    "run_of",
]  # fmt: skip

FILE = "expected.json"
SCALE = "check"
#: how often a run that is as it should be has a figure outside, over seeds
FALSE_ALARMS = 0.01

_DROPPED = ("seed",)


def kept(results: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the file holds, of the results of `dvae_fast.reproduction.runs.read_results`.

    Seed 0 is left out, and rows that are not the scale's. Of each row: its settings, seeds, figures
    and seconds of training by seed, the versions and the commit.
    """
    found: dict[str, dict[str, Any]] = {}
    for result in sorted(results, key=lambda r: (list(ROWS).index(r["row"]), r["seed"])):
        if result["seed"] == 0 or result["row"] not in SCALES[SCALE].rows:
            continue
        settings = {k: v for k, v in result["settings"].items() if k not in _DROPPED}
        row = found.setdefault(
            result["row"],
            {
                "settings": settings,
                "versions": {name: result["versions"][name] for name in ("dvae_fast", "torch")},
                "commit": result["commit"],
                "seeds": [],
                "training_seconds": [],
                "figures": {name: [] for name in FIGURES},
            },
        )
        row["seeds"].append(result["seed"])
        row["training_seconds"].append(round(result["training_seconds"], 2))
        for name in FIGURES:
            row["figures"][name].append(round(result["figures"][name], 4))
    return found


def expected_rows() -> dict[str, dict[str, Any]]:
    """What is kept with the package, by row, as `kept` makes it."""
    text = resources.files("dvae_fast.reproduction").joinpath(FILE).read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def run_of(row: str, device: str = "cpu") -> Run:
    """The run that is held to what is kept: seed 0 of a row, on a device.

    Raises:
        ValueError: if no numbers of the row are kept, or those of other settings.
    """
    check_choice("check", row, expected_rows())
    (run,) = plan([ROWS[row]], SCALES[SCALE], seeds=1, device=device)
    settings = {k: v for k, v in run.settings().items() if k not in _DROPPED}
    if (difference := differing(expected_rows()[row]["settings"], settings)) is not None:
        raise ValueError(f"{row} must be the row that numbers are kept of: {difference}")
    return run


def interval(values: Sequence[float], false_alarms: float) -> tuple[float, float]:
    """Where another value of the same normal distribution lies, but for a share `false_alarms`.

    m ± t s √(1 + 1/n), with m and s of the n values and Student's t of n − 1 degrees.

    Raises:
        MissingExtraError: if scipy, which has the quantiles of t, is not installed.
    """
    n = len(values)
    mean, error = mean_and_error(values)
    assert error is not None
    t = require("scipy.stats", "scipy", "an interval of Student's t").t
    half = float(t.ppf(1 - false_alarms / 2, n - 1)) * error * math.sqrt(n + 1)
    return mean - half, mean + half


@dataclass(frozen=True)
class Held:
    """A figure of a run, in nats, and the interval that it should lie in.

    Attributes:
        name: one of `FIGURES`.
        value: NaN where it was not finite.
        low, high: the interval.
    """

    name: str
    value: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """False of NaN."""
        return self.low <= self.value <= self.high


def held(row: str, figures: Mapping[str, float | None]) -> list[Held]:
    """Each of a run's figures with its interval; all of them are inside but for `FALSE_ALARMS`.

    Each has its share of that: whatever their dependence, the sum is an upper limit (Bonferroni).
    """
    rows = expected_rows()[row]["figures"]
    found = []
    for name, values in rows.items():
        value = figures[name]
        low, high = interval(values, FALSE_ALARMS / len(rows))
        found.append(Held(name, math.nan if value is None else value, low, high))
    return found
