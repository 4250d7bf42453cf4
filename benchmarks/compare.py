"""Two runs compared, for review: python benchmarks/compare.py BEFORE.json AFTER.json

Ours of every group in both files. It is slower where its median is more than --threshold times the
one before and no turn of it was as fast as any before; over the threshold with turns that overlap,
the machine may be the reason, and it is called unsure. How the others of both runs changed is
printed too: they tell what the machine did.

Exit status: 0 nothing is slower, 1 something is, 2 the files cannot be compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from figures import Figure, load, seconds, table

HEAD = ["group", "rival", "before", "after", "ratio", ""]


class Change(NamedTuple):
    """One figure in both runs; `after` is None where the second has it not."""

    group: str
    before: Figure
    after: Figure | None

    @property
    def ratio(self) -> float:
        return self.after.median / self.before.median if self.after else math.nan

    def verdict(self, threshold: float) -> str:
        """slower, faster, unsure, or "" within the threshold."""
        if self.after is None or 1 / threshold <= self.ratio <= threshold:
            return ""
        (least, most), (low, high) = ((min(f.turns), max(f.turns)) for f in self[1:])
        return "slower" if low > most else "faster" if high < least else "unsure"

    def row(self, verdict: str) -> list[str]:
        times = (seconds(figure.median) for figure in self[1:])
        return [self.group, self.before.rival, *times, f"{self.ratio:.2f}", verdict]


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What was not the same about the two runs, in words."""
    a, b = (content["machine_info"]["measured_with"] for content in (before, after))
    facts = {name: (a[name], b[name]) for name in ("threads", "torch", "malloc")}
    facts["CPU"] = (a["cpu"]["model"], b["cpu"]["model"])
    return [f"{name}: {x} before, {y} after" for name, (x, y) in facts.items() if x != y]


def compare(before: Path, after: Path, threshold: float) -> int:
    """Print the comparison of two files; the exit status."""
    (old, old_content), (new, new_content) = load(before), load(after)
    every = [
        Change(name, figure, new.get(name, {}).get(rival))
        for name, group in old.items()
        for rival, figure in group.items()
    ]
    missing = [c for c in every if c.after is None and c.before.rival.startswith("ours")]
    ours, others = (
        [c for c in every if c.after and c.before.rival.startswith("ours") is mine]
        for mine in (True, False)
    )
    if not ours:
        print(f"compare: {before} and {after} have no group of ours in common", file=sys.stderr)
        return 2
    for line in differences(old_content, new_content):
        print(f"Not the same: {line}")
    verdicts = [change.verdict(threshold) for change in ours]
    rows = [change.row(v) for change, v in zip(ours, verdicts, strict=True) if v]
    print(table(HEAD, rows, ("rival",)))
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in ("slower", "unsure", "faster"))
    print(f"\n{len(ours)} compared at {threshold:g}×: {counts}.")
    if others:
        middle = statistics.median(change.ratio for change in others)
        print(f"The others took {middle:.2f}× as long (median of {len(others)}).")
    if missing:
        first = f"{missing[0].group}, {missing[0].before.rival}"
        print(f"{len(missing)} of ours are in {before.name} alone, first {first}.")
    return int("slower" in verdicts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two runs of the benchmarks.")
    parser.add_argument("before", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=1.1, help="slower by more than this")
    a = parser.parse_args()
    if a.threshold < 1:
        parser.error(f"--threshold must be >= 1, got {a.threshold}")
    try:
        status = compare(a.before, a.after, a.threshold)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"not two files of the benchmarks: {error!r}")
    sys.exit(status)


if __name__ == "__main__":
    main()
