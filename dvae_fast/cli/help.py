"""What ``--help`` shows: options in groups, each as wide as the terminal lets it be."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import textwrap
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dvae_fast.cli.outlet import say

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Command", "Group", "help_text"]

# Lines are no longer than people like to read, and no shorter than a word and its indent.
_WIDEST, _NARROWEST = 100, 24
# Where the words about an option begin, and from which width on they stand beside it.
_COLUMN, _WIDE = 30, 72
_HERE = "Options"
_KINDS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


class Command(TyperCommand):
    """A command whose help is :func:`help_text`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        say(help_text(self, ctx))


class Group(TyperGroup):
    """The program, likewise."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        say(help_text(self, ctx))


def help_text(command: Any, ctx: Any) -> str:
    """The help of a command of typer's, with signs for bold where it is shown in a terminal."""
    # One column stays free: a full line would make some terminals begin another.
    width = max(_NARROWEST, min(shutil.get_terminal_size().columns - 1, _WIDEST))
    return "\n".join(_lines(command, ctx, width))


def _lines(command: Any, ctx: Any, width: int) -> Iterator[str]:
    parameters = [p for p in command.get_params(ctx) if not getattr(p, "hidden", False)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    commands: dict[str, Any] = getattr(command, "commands", {})
    words = [ctx.command_path, "[OPTIONS]", *(p.name.upper() for p in arguments)]
    words += ["COMMAND …"] * bool(commands)
    yield from _filled(f"Usage: {' '.join(words)}", width, 0, 7)
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield ""
        yield from _filled(paragraph, width)
    if commands:
        yield from _entries(
            "Commands", [(name, _first(one.help)) for name, one in commands.items()], width
        )
    hints = _hints(command)
    groups: dict[str, list[Any]] = {"Arguments": arguments}
    for parameter in parameters:
        if parameter not in arguments:
            groups.setdefault(parameter.rich_help_panel or _HERE, []).append(parameter)
    groups[_HERE] = groups.pop(_HERE, [])  # the last
    for name, some in groups.items():
        yield from _entries(name, [(_name(p, hints), _about(p)) for p in some], width)
    if command.epilog:
        yield ""
        yield _bold("Example")
        # A command that is cut goes on in the shell too.
        parts = textwrap.wrap(
            command.epilog, width - 4, initial_indent="  ", subsequent_indent="    ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        yield " \\\n".join(parts)


def _hints(command: Any) -> dict[str, Any]:
    if command.callback is None:
        return {}
    parameters = inspect.signature(command.callback, eval_str=True).parameters
    return {name: p.annotation for name, p in parameters.items()}


def _name(parameter: Any, hints: dict[str, Any]) -> str:
    """Of an option, as it is written: ``-k, --k N``."""
    if parameter.param_type_name == "argument":
        return str(parameter.name.upper())
    flags = sorted((*parameter.opts, *parameter.secondary_opts), key=lambda o: o.startswith("--"))
    if parameter.is_flag:
        return ", ".join(flags)
    return f"{', '.join(flags)} {parameter.metavar or _kind(hints.get(parameter.name))}"


def _kind(hint: Any) -> str:
    """What is written after an option whose parameter is annotated so."""
    if hint in _KINDS:
        return _KINDS[hint]
    found = [
        _kind(part) for part in typing.get_args(hint) if isinstance(part, type) or _inner(part)
    ]
    return next(filter(None, found), "")


def _inner(hint: Any) -> bool:
    return typing.get_origin(hint) is not None


def _about(parameter: Any) -> str:
    """The words about an option, and its default where they do not tell it."""
    words = parameter.help or ""
    default = parameter.default
    if "efault" in words or isinstance(default, bool) or not isinstance(default, _SHOWN):
        return str(words)
    return f"{words} Default: {default}."


_SHOWN = (str, int, float, Path)


def _entries(title: str, entries: list[tuple[str, str]], width: int) -> Iterator[str]:
    if not entries:
        return
    yield ""
    yield _bold(title)
    for name, about in entries:
        if width < _WIDE:
            yield from map(_bold, _filled(name, width, 2, 4))
            yield from _filled(about, width, 6)
            continue
        first, *rest = [*_filled(about, width, _COLUMN)] or [""]
        if len(name) > _COLUMN - 4:
            yield f"  {_bold(name)}"
            yield first
        else:
            yield f"  {_bold(name)}{first[len(name) + 2 :]}"
        yield from rest


def _filled(text: str, width: int, indent: int = 0, hanging: int | None = None) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), width, initial_indent=" " * indent,
        subsequent_indent=" " * (indent if hanging is None else hanging), break_on_hyphens=False,
    )  # fmt: skip


def _first(text: str | None) -> str:
    """The first paragraph."""
    return inspect.cleandoc(text or "").partition("\n\n")[0]


def _bold(text: str) -> str:
    shown = sys.stdout is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return typer.style(text, bold=True) if shown else text
