"""The command line: ``dvae-fast train | evaluate | sample | reproduce | info | check``.

Exit codes: 0 done; 1 something is missing, damaged or cannot be written; 2 an option is wrong;
128 + the signal's number (130 for Ctrl-C) interrupted. A reader who is gone, as ``head`` is after
some lines, changes nothing: the work goes on, untold.

``torchrun --nproc-per-node N -m dvae_fast train | evaluate`` shares the work among N processes;
rank 0 alone prints.
"""

from __future__ import annotations

from typing import Annotated

from dvae_fast._extras import INSTALL

try:
    import typer
    from rich import console as _console  # noqa: F401  (for the commands' files)
except ModuleNotFoundError as error:
    raise SystemExit(
        f"dvae-fast: the command line needs the package {error.name}, which is not installed: "
        f"{INSTALL}"
    ) from None

from dvae_fast._version import __version__
from dvae_fast.checking.cli import check_command
from dvae_fast.cli.evaluate import evaluate_command
from dvae_fast.cli.help import Command, Group
from dvae_fast.cli.info import info_command
from dvae_fast.cli.outlet import say, standard_outlets
from dvae_fast.cli.reproduce import reproduce_command
from dvae_fast.cli.sample import sample_command
from dvae_fast.cli.train import train_command

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train denoising variational autoencoders and evaluate them by importance sampling.",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    epilog="dvae-fast train --model iwae --data digits",
)
#: each command, and an example of it
_COMMANDS = (
    ("train", train_command, "dvae-fast train --model iwae --data mnist --samples 50"),
    ("evaluate", evaluate_command, "dvae-fast evaluate runs/iwae --split valid --tolerance 0.05"),
    ("sample", sample_command, "dvae-fast sample runs/iwae --n 25 --out samples.svg"),
    ("reproduce", reproduce_command, "dvae-fast reproduce --scale small --rows '*gru*' --seeds 1"),
    ("info", info_command, "dvae-fast info"),
    ("check", check_command, "dvae-fast check --device cuda"),
)
for _name, _command, _example in _COMMANDS:
    app.command(_name, cls=Command, epilog=_example)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"dvae-fast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of ``dvae-fast`` and ``python -m dvae_fast``."""
    with standard_outlets():
        app(prog_name="dvae-fast")
