"""What an H200 is to show, and whether it did: a table from check.json and bench.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: relative to the sum of absolute terms, in float32: the unit of check.json's limits
RELATIVE = 2e-6


@dataclass(frozen=True)
class Target:
    what: str
    wanted: str
    value: float | None
    shown: str
    #: None: nothing measured says
    met: bool | None


class Measured:
    """What check.json and bench.json say; LookupError where they do not."""

    def __init__(self, check: dict[str, Any] | None, bench: dict[str, Any] | None) -> None:
        self._rows = (check or {}).get("rows", [])
        self._results = {r["key"]: r for r in (bench or {}).get("results", [])}

    def rows(self, what: tuple[str, ...], operator: str, dtype: str = "") -> list[dict[str, Any]]:
        found = [
            row
            for row in self._rows
            if row["operator"] == operator
            and row["what"] in what
            and row["cases"]
            and dtype in ("", row["dtype"])
        ]
        if not found:
            raise LookupError("not checked")
        return found

    def _result(self, key: str) -> dict[str, Any]:
        if key not in self._results:
            raise LookupError("not measured")
        return self._results[key]

    def seconds(self, key: str, rival: str = "ours", clock: str = "seconds") -> float:
        result = self._result(key)
        for wrong in (rival, f"{rival}, result"):
            if wrong in result["errors"]:
                raise ValueError(result["errors"][wrong])
        if rival not in result[clock]:
            raise LookupError("not measured")
        return float(result[clock][rival])

    def bandwidth(self, key: str) -> float:
        return float(self._result(key)["bytes"]) / self.seconds(key)

    def share_of_copy(self, key: str) -> float:
        return self.bandwidth(key) / self.bandwidth("copy")

    def times_eager(self, key: str) -> float:
        """The fastest of the eager formulas over ours."""
        eager = [s for name, s in self._result(key)["seconds"].items() if name.startswith("eager")]
        if not eager:
            raise LookupError("not measured")
        return min(eager) / self.seconds(key)


def _masks(m: Measured) -> float:
    return float(sum(row["verdict"] != "passed" for row in m.rows(("masks",), "corrupt")))


def _log_weights(m: Measured) -> float:
    rows = m.rows(("values", "layouts"), "log_weights", "float32")
    return RELATIVE * max(float(row["worst"]) for row in rows)


# What, wanted, the value, whether it is met, how it is shown.
_Row = tuple[
    str, str, "Callable[[Measured], float]", "Callable[[float], bool]", "Callable[[float], str]"
]


def _percent(v: float) -> str:
    return f"{100 * v:.1f} %"


_TARGETS: list[_Row] = [
    (
        "masks, against the CPU's bits",
        "the same",
        _masks,
        lambda v: v == 0,
        lambda v: "the same" if v == 0 else f"{v:.0f} groups of cases differ",
    ),
    (
        "log-weights from the same z, error over the sum of absolute terms",
        "<= 2e-6",
        _log_weights,
        lambda v: v <= RELATIVE,
        lambda v: f"{v:.2g}",
    ),
    *(
        (
            f"log_weights {dtype}, share of copy bandwidth",
            ">= 85 %",
            lambda m, dtype=dtype: m.share_of_copy(f"log_weights {dtype}"),  # type: ignore[misc]
            lambda v: v >= 0.85,
            _percent,
        )
        for dtype in ("float32", "bfloat16")
    ),
    (
        "iwae_loss K=50 float32, share of copy bandwidth at 8 B an element",
        ">= 80 %",
        lambda m: m.share_of_copy("iwae_loss K=50 float32"),
        lambda v: v >= 0.80,
        _percent,
    ),
    (
        "iwae_loss K=50 float32, times as fast as eager",
        ">= 6",
        lambda m: m.times_eager("iwae_loss K=50 float32"),
        lambda v: v >= 6,
        lambda v: f"{v:.2f}",
    ),
    (
        "evaluation, 10,000 × k=5000 in bfloat16",
        "< 0.3 s",
        lambda m: m.seconds("evaluation bfloat16", clock="wall_seconds"),
        lambda v: v < 0.3,
        lambda v: f"{v:.3f} s",
    ),
    (
        "training step, B=100 K=5, in a graph",
        "< 100 µs",
        lambda m: m.seconds("training K=5"),
        lambda v: v < 100e-6,
        lambda v: f"{v * 1e6:.1f} µs",
    ),
]


def read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def targets(
    check: dict[str, Any] | None, bench: dict[str, Any] | None, dry_run: bool = False
) -> list[dict[str, Any]]:
    """One row a target. A dry run goes through it, and meets or misses none."""
    measured = Measured(check, bench)
    rows = []
    for what, wanted, value, met, shown in _TARGETS:
        try:
            number = value(measured)
            row = Target(what, wanted, number, shown(number), met(number))
        except LookupError as error:
            row = Target(what, wanted, None, str(error.args[0]), None)
        except ValueError as error:  # it failed, or gives wrong results
            row = Target(what, wanted, None, str(error), False)
        rows.append(asdict(row) | ({"met": None} if dry_run else {}))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    words = {True: "met", False: "MISSED", None: "-"}
    width = max((len(r["what"]) for r in rows), default=0)
    return "\n".join(
        f"{r['what']:{width}}  {r['wanted']:>8}  {r['shown']:>14}  {words[r['met']]}" for r in rows
    )
