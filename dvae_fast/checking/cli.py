"""``dvae-fast check``."""

from __future__ import annotations

from typing import Annotated

import typer

from dvae_fast.checking.command import run_command


def check_command(
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; by default a GPU if there is one.")
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the report there; - for stdout. Default: none."),
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="Few cases of few elements.")] = False,
) -> None:
    """Hold every operator to the float64 reference on this machine.

    On a GPU the verdict is remembered: operators that fail run the reference.
    """
    raise typer.Exit(run_command(device, json, small=small))
