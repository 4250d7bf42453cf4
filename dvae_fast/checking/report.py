"""What a check found: rows, their table, and JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

#: order of the table's columns
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Row:
    """One property of one operator, or public function, in one dtype, at one ISA level."""

    operator: str
    #: values, layouts, empty, masks or graph of an operator; gradients of a public function
    what: str
    dtype: str
    #: instruction set on a CPU, else the device
    level: str
    cases: int
    #: the worst error as a multiple of the limit, and both
    worst: float
    error: float
    limit: float
    verdict: str
    #: the first failure, or why it was skipped
    detail: str = ""
    #: the operators it stands on
    operators: tuple[str, ...] = ()

    @property
    def direction(self) -> str:
        if self.what == "gradients":
            return "both"
        return "backward" if "_backward" in self.operator else "forward"


@dataclass(frozen=True)
class CheckReport:
    """The verdicts of `dvae_fast.check`; true where everything passed."""

    #: name, capability, driver, versions, hash of the library, ISA levels
    machine: dict[str, Any]
    rows: tuple[Row, ...]
    seconds: float
    small: bool = False
    #: why the check broke off ("": it did not), and the kind of that reason: crash, timeout
    #: or device
    incomplete: str = ""
    incomplete_kind: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return not self.incomplete and all(row.verdict != FAILED for row in self.rows)

    def __bool__(self) -> bool:
        return self.passed

    @property
    def failed_operators(self) -> tuple[str, ...]:
        """Operators that are wrong somewhere.

        A public function that fails although each operator under it passed fails all of them.
        """
        own = {r.operator for r in self.rows if r.verdict == FAILED and r.what != "gradients"}
        failed = set(own)
        for row in self.rows:
            if row.verdict == FAILED and not own.intersection(row.operators):
                failed.update(row.operators)
        return tuple(sorted(failed))

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict == FAILED)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has; infinities are strings."""
        rows = []
        for row in self.rows:
            values = asdict(row)
            for name in ("worst", "error", "limit"):
                if not math.isfinite(values[name]):
                    values[name] = str(values[name])
            rows.append({**values, "operators": list(row.operators)})
        return {
            "passed": self.passed,
            "failed_operators": list(self.failed_operators),
            "incomplete": self.incomplete,
            "incomplete_kind": self.incomplete_kind,
            "small": self.small,
            "seconds": self.seconds,
            "machine": self.machine,
            "notes": list(self.notes),
            "rows": rows,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CheckReport:
        """Raises KeyError, TypeError or ValueError where it is not what `to_dict` makes."""
        rows = []
        for row in values["rows"]:
            numbers = {name: float(row[name]) for name in ("worst", "error", "limit")}
            rows.append(Row(**{**row, **numbers, "operators": tuple(row["operators"])}))
        return cls(
            machine=dict(values["machine"]),
            rows=tuple(rows),
            seconds=float(values["seconds"]),
            small=bool(values["small"]),
            incomplete=str(values["incomplete"]),
            incomplete_kind=str(values["incomplete_kind"]),
            notes=tuple(values["notes"]),
        )

    def table(self) -> str:
        """One line an operator: the worst error of each dtype, as a multiple of its limit."""
        head = ("operator", "direction", "cases", *DTYPES, "bits", "verdict")
        lines: list[tuple[str, ...]] = [head]
        lines.extend(
            self._line([r for r in self.rows if (r.operator, r.direction) == name], *name)
            for name in dict.fromkeys((r.operator, r.direction) for r in self.rows)
        )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        numeric = range(2, 3 + len(DTYPES))
        text = [
            "  ".join(
                cell.rjust(width) if i in numeric else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        text.insert(1, "-" * sum(widths, 2 * (len(widths) - 1)))
        return "\n".join(text)

    def _line(self, rows: list[Row], operator: str, direction: str) -> tuple[str, ...]:
        def worst(dtype: str) -> str:
            numbers = [
                row.worst
                for row in rows
                if row.dtype == dtype and row.cases and row.what not in ("masks", "empty")
            ]
            return f"{max(numbers):.2g}" if numbers else "-"

        masks = [row for row in rows if row.what == "masks" and row.cases]
        bits = "-" if not masks else "same" if all(r.verdict == PASSED for r in masks) else "differ"
        verdicts = {row.verdict for row in rows}
        verdict = next(v for v in (FAILED, PASSED, SKIPPED) if v in verdicts)
        cases = str(sum(row.cases for row in rows))
        return (operator, direction, cases, *map(worst, DTYPES), bits, verdict)

    def summary(self) -> str:
        """The verdict in a sentence, and a line for each failure."""
        cases = sum(row.cases for row in self.rows)
        head = f"{cases} cases on {self.machine.get('name', '?')} in {self.seconds:.1f} s: "
        failed = self.failed_operators
        if self.incomplete:
            head += f"broken off: {self.incomplete}"
        elif failed:
            head += f"{', '.join(failed)} failed"
        else:
            head += "all passed"
        lines = [head]
        for row in self.failures:
            lines.append(f"  {row.operator} {row.what} {row.dtype} {row.level}: {row.detail}")
        return "\n".join([*lines, *self.notes])

    def __str__(self) -> str:
        words = [
            f"{name.replace('_', ' ')} {', '.join(value) if isinstance(value, list) else value}"
            for name, value in self.machine.items()
            if value not in (None, "", [])
        ]
        legend = "Errors are multiples of the limit of each element: up to 1 is right."
        return "\n".join([self.table(), "", legend, "; ".join(words), self.summary()])

    def __repr__(self) -> str:
        return f"<CheckReport {self.summary().splitlines()[0]}>"
