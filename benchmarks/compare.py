"""Two runs compared, for review: python benchmarks/compare.py BEFORE.json AFTER.json

Ours of every group in both files. It is slower where its median is more than --threshold times the
one before and no turn of it was as fast as any before; over the threshold with turns that overlap,
the machine may be the reason, and it is called unsure. How the others of both runs changed is
printed too: they tell what the machine did.

Exit status: 0 nothing is slower, 1 something is, 2 the files cannot be compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Figure, Groups, load, seconds, table

HEAD = ["group", "rival", "before", "after", "ratio", ""]


@dataclass(frozen=True)
class Change:
    """One figure in both runs."""

    group: str
    before: Figure
    after: Figure
    threshold: float

    @property
    def ratio(self) -> float:
        return self.after.median / self.before.median

    @property
    def verdict(self) -> str:
        """slower, faster, unsure, or "" within the threshold."""
        if self.ratio > self.threshold:
            return "slower" if min(self.after.turns) > max(self.before.turns) else "unsure"
        if self.ratio < 1 / self.threshold:
            return "faster" if max(self.after.turns) < min(self.before.turns) else "unsure"
        return ""

    def row(self) -> list[str]:
        times = (seconds(self.before.median), seconds(self.after.median))
        return [self.group, self.before.rival, *times, f"{self.ratio:.2f}", self.verdict]


def changes(before: Groups, after: Groups, threshold: float) -> tuple[list[Change], list[Change]]:
    """Of ours, and of everybody else, for what both runs have."""
    ours, others = [], []
    for name, group in before.items():
        for rival, figure in group.items():
            if (there := after.get(name, {}).get(rival)) is not None:
                change = Change(name, figure, there, threshold)
                (ours if rival.startswith("ours") else others).append(change)
    return ours, others


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What was not the same about the two runs, in words."""
    a, b = (content["machine_info"]["measured_with"] for content in (before, after))
    facts = {name: (a[name], b[name]) for name in ("threads", "torch", "malloc")}
    facts["CPU"] = (a["cpu"]["model"], b["cpu"]["model"])
    return [f"{name}: {x} before, {y} after" for name, (x, y) in facts.items() if x != y]


def compare(before: Path, after: Path, threshold: float) -> int:
    """Print the comparison of two files; the exit status."""
    (old, old_content), (new, new_content) = load(before), load(after)
    ours, others = changes(old, new, threshold)
    if not ours:
        print(f"compare: {before} and {after} have no group of ours in common", file=sys.stderr)
        return 2
    for line in differences(old_content, new_content):
        print(f"Not the same: {line}")
    print(table(HEAD, [change.row() for change in ours if change.verdict], ("rival",)))
    counts = {
        kind: sum(change.verdict == kind for change in ours)
        for kind in ("slower", "unsure", "faster")
    }
    print(f"\n{len(ours)} compared at {threshold:g}×: ", end="")
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()) + ".")
    if others:
        middle = statistics.median(change.ratio for change in others)
        print(f"The others took {middle:.2f}× as long (median of {len(others)}).")
    missing = [
        f"{name}, {rival}"
        for name, group in old.items()
        for rival in group
        if rival.startswith("ours") and rival not in new.get(name, {})
    ]
    if missing:
        print(f"{len(missing)} of ours are in {before.name} alone, first {missing[0]}.")
    return 1 if counts["slower"] else 0


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
