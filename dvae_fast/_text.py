"""Numbers as people read them."""

from __future__ import annotations

import math
import sys

__all__ = ["counted", "format_duration", "format_number", "one_number", "printable", "some_have"]

#: what stands for a sign that an encoding lacks
_PLAIN = {
    "−": "-", "–": "-", "±": "+/-", "\u0302": "^", "\u0303": "~", "≤": "<=", "≥": ">=", "×": "x",
    "·": "*", "…": "...", "→": "->",
}  # fmt: skip


def format_number(value: float, digits: int = 2) -> str:
    return f"{value:,.{digits}f}".replace("-", "−") if math.isfinite(value) else str(value)


def one_number(value: float | None, digits: int = 2) -> str:
    """Of a report, where None stands for what is not finite."""
    finite = value is not None and math.isfinite(value)
    return format_number(value, digits) if value is not None and finite else "not finite"


def counted(number: int, name: str) -> str:
    """1 example, 1,000 examples; `name` is in the singular."""
    return f"{number:,} {name if number == 1 else _plural(name)}"


def some_have(number: int, of: int, name: str = "example") -> str:
    """1 of 300 examples has, 2 of 300 examples have."""
    return f"{number:,} of {counted(of, name)} {'has' if number == 1 else 'have'}"


def _plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def format_duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–:––"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def printable(text: str, encoding: str | None = None) -> str:
    """The text in signs that an encoding has, by default standard output's: print, and a prompt,
    must not fail on a name, and a minus must not be lost."""
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    if _has(text, encoding):
        return text
    return "".join(c if _has(c, encoding) else _PLAIN.get(c, "?") for c in text)


def _has(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeError:
        return False
    return True
