"""Results in a few lines: as text, as a notebook shows them, and in the tables of the commands.

All are made from a report, which is what `summary()` gives.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any
from unicodedata import combining

from dvae_fast._text import counted, format_number, one_number, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Row = tuple[str, str]

__all__ = [
    "annealed_rows",
    "as_html",
    "as_text",
    "estimate_rows",
    "importance_rows",
    "samples_text",
]

_WIDTH = 88
_WARNINGS, _NONE = "warnings", "none"


def samples_text(report: Mapping[str, Any]) -> str:
    """How many weights an example had."""
    if "chains" in report:
        return (
            f"{counted(report['chains'], 'chain')}, "
            f"{counted(report['temperatures'], 'temperature')}"
        )
    if report["samples"] == report["k"] * report["examples"]:
        return f"k = {report['k']:,}"
    return f"k = {report['samples'] / report['examples']:,.0f} on average"


def importance_rows(report: Mapping[str, Any]) -> list[Row]:
    """The bound and the diagnostics of importance sampling."""
    median = report["pareto_k_median"]
    typical = "" if median is None else f", {format_number(median)} in the median"
    return [
        ("ELBO", f"{one_number(report['elbo'])} nats"),
        (
            "effective samples",
            f"{one_number(report['ess_mean'], 1)} on average, "
            f"{one_number(report['ess_min'], 1)} at least, below 10 for "
            f"{report['ess_below_10']:,}",
        ),
        (
            "Pareto k̂",
            f"above 0.7 for {counted(report['pareto_k_above_0.7'], 'example')}{typical}",
        ),
    ]


def annealed_rows(report: Mapping[str, Any]) -> list[Row]:
    """The diagnostics of annealed importance sampling."""
    return [
        ("acceptance", one_number(report["acceptance"])),
        (
            "effective chains",
            f"{one_number(report['ess_mean'], 1)} on average, "
            f"{one_number(report['ess_min'], 1)} at least",
        ),
    ]


def estimate_rows(report: Mapping[str, Any], diagnostics: Sequence[Row]) -> list[Row]:
    """The mean log-likelihood with its error, and the diagnostics."""
    bits = report["bits_per_dimension"]
    per_dimension = "" if bits is None else f", {format_number(bits, 4)} bits per dimension"
    return [
        (
            "log p(x)",
            f"{one_number(report['log_likelihood'])} ± "
            f"{one_number(report['standard_error'], 3)} nats{per_dimension}",
        ),
        *diagnostics,
    ]


def as_text(title: str, rows: Iterable[Row], warnings: Sequence[str]) -> str:
    """A line for the title, for each row and for the first of the warnings, none longer than a
    terminal takes."""
    said = f"{len(warnings)}: {warnings[0]}" if warnings else _NONE
    rows = [*rows, (_WARNINGS, said)]
    # Without signs that stand over others, as that of k̂.
    lengths = [sum(not combining(sign) for sign in name) for name, _ in rows]
    width = max(lengths) + 2
    lines = [title]
    for (name, value), length in zip(rows, lengths, strict=True):
        lines.append(f"  {name}{' ' * (width - length)}{value}")
    cut = (line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…" for line in lines)
    return printable("\n".join(cut))


def as_html(title: str, rows: Iterable[Row], warnings: Sequence[str]) -> str:
    """The same as a table in the notebook's own colours, with all of the warnings."""
    left = "text-align:left;vertical-align:top"
    listed = "<br>".join(map(escape, warnings)) or _NONE
    cells = "".join(
        f'<tr><th scope="row" style="{left};white-space:nowrap">{escape(name)}</th>'
        f'<td style="{left}">{value}</td></tr>'
        for name, value in [*((n, escape(v)) for n, v in rows), (_WARNINGS, listed)]
    )
    return f"<div><strong>{escape(title)}</strong><table><tbody>{cells}</tbody></table></div>"
