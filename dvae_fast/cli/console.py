"""Messages, numbers and tables, as the commands print them."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from dvae_fast._extras import MissingExtraError
from dvae_fast.data import DataError
from dvae_fast.distributed import DistributedError, is_main_process
from dvae_fast.files import CheckpointError
from dvae_fast.training import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

__all__ = [
    "check_seed",
    "fail",
    "format_duration",
    "format_number",
    "listed",
    "one_line_errors",
    "print_warnings",
    "two_columns",
    "wrong_options",
]


def fail(message: str, code: int, *, shared: bool = False) -> NoReturn:
    """`shared`: every process of the run fails alike, and one message is enough."""
    if is_main_process() or not shared:
        typer.echo(f"dvae-fast: {message}", err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can put right becomes one line; anything else is a defect, with a traceback."""
    try:
        yield
    except NonFiniteError as error:
        fail(str(error), 1, shared=True)
    except (CheckpointError, DataError, DistributedError, MissingExtraError) as error:
        fail(str(error), 1, shared=isinstance(error.__cause__, DistributedError))
    except KeyboardInterrupt:
        fail("interrupted", 130, shared=True)


@contextlib.contextmanager
def wrong_options(*, shared: bool = True) -> Iterator[None]:
    """A ValueError from checking the options is the user's."""
    try:
        yield
    except ValueError as error:
        fail(str(error), 2, shared=shared)


def format_number(value: float, digits: int = 2) -> str:
    return f"{value:,.{digits}f}".replace("-", "−") if math.isfinite(value) else str(value)


def format_duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–:––"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def listed(choices: Iterable[str]) -> str:
    return ", ".join(choices)


def two_columns(rows: Iterable[tuple[str, str]], title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to {2**63 - 1}, got {seed}")


def print_warnings(console: Console, report: dict[str, Any]) -> None:
    for text in report["warnings"]:
        console.print(f"Warning: {text}", soft_wrap=True, markup=False)
