"""Messages, numbers and tables, as the commands print them."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import typer
from rich.markup import escape
from rich.table import Table

from dvae_fast._extras import MissingExtraError
from dvae_fast.cli.outlet import say
from dvae_fast.data import DataError
from dvae_fast.distributed import DistributedError, is_main_process
from dvae_fast.evaluation.batching import out_of_memory, wanted
from dvae_fast.files import CheckpointError, one_line
from dvae_fast.training import MOST_THREADS, NonFiniteError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console

__all__ = [
    "busy_hint",
    "check_seed",
    "check_threads",
    "fail",
    "listed",
    "one_line_errors",
    "print_warnings",
    "two_columns",
    "wrong_options",
]


def fail(message: str, code: int, *, shared: bool = False) -> NoReturn:
    """`shared`: every process of the run fails alike, and one message is enough."""
    if is_main_process() or not shared:
        say(f"dvae-fast: {' '.join(message.splitlines())}", error=True)
    raise typer.Exit(code)


#: how torch says that there is not enough memory for a size, or that no memory is
_TOO_LARGE = re.compile("DefaultCPUAllocator|overflow|too large to convert|invalid size", re.I)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can put right becomes one line; anything else is a defect, with a traceback."""
    try:
        yield
    except NonFiniteError as error:
        fail(str(error), 1, shared=True)
    except OptionError as error:
        fail(str(error), 2, shared=True)
    except (CheckpointError, DataError, DistributedError, MissingExtraError) as error:
        fail(str(error), 1, shared=isinstance(error.__cause__, DistributedError))
    except (MemoryError, torch.OutOfMemoryError) as error:
        fail(f"out of memory: {one_line(error)}", 1)
    except (RuntimeError, OverflowError, TypeError) as error:
        said = str(error).partition("Exception raised")[0]  # and then torch's own stack
        if not _TOO_LARGE.search(said):
            if not out_of_memory(error):
                raise
            said = ""
        fail(f"a size is too large for this machine: {wanted(said) or 'out of memory'}", 1)
    except KeyboardInterrupt:
        fail("interrupted", 130, shared=True)


@contextlib.contextmanager
def wrong_options(
    *, shared: bool = True, begun: Callable[[], bool] | None = None
) -> Iterator[None]:
    """A ValueError from checking the options is the user's.

    Args:
        shared: as for `fail`.
        begun: whether the work has begun, if some is done within the block: from there on a
            ValueError is no option's.
    """
    try:
        yield
    except UnicodeError:  # one that no check raises
        raise
    except ValueError as error:
        if begun is not None and begun():
            raise
        fail(str(error), 2, shared=shared)


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


def check_threads(threads: int | None) -> None:
    if threads is not None and threads > MOST_THREADS:
        raise ValueError(f"threads must be <= {MOST_THREADS}, got {threads}")


def busy_hint(threads: int | None) -> str:
    """What helps where others use the processors too; "" where nobody does.

    OpenMP's threads wait for each other by spinning, for milliseconds, and among busy ones that is
    most of what they do: a step of MNIST took 17 ms and not 3, and 4.4 with GOMP_SPINCOUNT=1000
    (two cores of an Intel Xeon with two other processes).
    """
    count, cores = threads or torch.get_num_threads(), os.cpu_count() or 1
    chosen = any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    if count == 1 or chosen or not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    if load < max(1, cores / 2):
        return ""
    return (
        f"the machine is busy (load {load:.1f} on {cores} cores), where {count} threads wait for "
        "each other most of the time; --threads 1, or OMP_WAIT_POLICY=passive in the environment, "
        "is faster then"
    )


def print_warnings(console: Console, report: dict[str, Any]) -> None:
    for text in report["warnings"]:
        console.print(f"Warning: {text}", soft_wrap=True, markup=False)
