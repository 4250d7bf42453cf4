"""Standard output and error that never fail their writer: what is told is not what is done."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dvae_fast._text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Outlet", "new_console", "progress_bar", "say", "standard_outlets"]


class Outlet:
    """A text stream in whose place it stands, but for two things.

    A sign that the stream's encoding lacks is replaced. When the stream takes no more, its reader
    gone, its file closed, its disk full, the rest is dropped; what is not the reader's doing is
    told to `complaints`, once.
    """

    def __init__(self, stream: TextIO | None, complaints: Outlet | None = None) -> None:
        self._stream = stream
        self._complaints = complaints
        self.is_gone = stream is None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # typer tries, to tell text from bytes
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._stream is not None and not self.is_gone:
            with self._kept():
                try:
                    self._stream.write(text)
                except UnicodeError:
                    self._stream.write(printable(text, self._stream.encoding or "ascii"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._stream is not None and not self.is_gone:
            with self._kept():
                self._stream.flush()

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._drop()
        except (OSError, ValueError) as error:  # a ValueError of a stream that is closed
            self._drop()
            if self._complaints is not None and isinstance(error, OSError):
                self._complaints.write(f"dvae-fast: cannot print: {error.strerror or error}\n")
                self._complaints.flush()

    def _drop(self) -> None:
        self.is_gone = True
        # What is still in its buffer would be written when Python ends, and fail again.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = cast("TextIO", self._stream).fileno()
            if descriptor in (1, 2):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def _outlet(stream: TextIO | None) -> Outlet:
    return stream if isinstance(stream, Outlet) else Outlet(stream)


def new_console(*, quiet: bool = False) -> Console:
    """Of rich, on standard output as it is now."""
    return Console(file=cast("TextIO", _outlet(sys.stdout)), quiet=quiet, highlight=False)


def progress_bar(console: Console, first: str, *columns: str, **options: Any) -> Progress:
    """`first`, a bar and the columns, for a terminal; gone when it ends."""
    before, *after = (TextColumn(text) for text in (first, *columns))
    return Progress(
        before, BarColumn(bar_width=24), *after, console=console, transient=True,
        disable=not console.is_terminal, **options,
    )  # fmt: skip


def say(text: str, *, error: bool = False) -> None:
    """Print a line, on standard error if `error`."""
    stream = _outlet(sys.stderr if error else sys.stdout)
    stream.write(f"{text}\n")
    stream.flush()


def _say_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """One line, without the place in the source, which tells a user nothing."""
    say(f"dvae-fast: warning: {' '.join(str(message).split())}", error=True)


@contextlib.contextmanager
def standard_outlets() -> Iterator[None]:
    """Standard output and error are outlets within the block, and a warning is one line."""
    # A closed one leaves its number to the next file that is opened: whatever a library prints
    # would go there.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    old = sys.stdout, sys.stderr, warnings.showwarning
    error = Outlet(sys.stderr)
    sys.stdout, sys.stderr = cast("TextIO", Outlet(sys.stdout, error)), cast("TextIO", error)
    warnings.showwarning = _say_warning
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr, warnings.showwarning = old
