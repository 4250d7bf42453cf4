"""``dvae-fast sample``."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import Annotated

import typer

from dvae_fast.cli.console import check_seed, one_line_errors, wrong_options
from dvae_fast.cli.pictures import SAMPLED
from dvae_fast.models import load_model
from dvae_fast.plots import plot_samples
from dvae_fast.training import load_config

__all__ = ["sample_command"]


def sample_command(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    n: Annotated[int, typer.Option("--n", "-n", help="How many images.")] = SAMPLED,
    seed: Annotated[int, typer.Option(help="Of the latents and draws.")] = 0,
    draw: Annotated[
        bool, typer.Option("--draw", help="Draw x ~ p(x|z) instead of showing its mean.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The PNG. Default: samples.png in the run's folder.")
    ] = None,
) -> None:
    """Draw images from a run's best model and write them as one PNG."""
    with one_line_errors():
        with wrong_options():
            if n < 1:
                raise ValueError(f"n must be >= 1, got {n}")
            check_seed(seed)
        config, model = load_config(run_dir), load_model(run_dir)
        path = out or run_dir / "samples.png"
        kind = "draws from" if draw else "means of"
        images = model.sample(n, seed=seed, draw=draw)
        plot_samples(
            images, config.image_shape, path,
            title=f"{config.model} on {config.data}: {kind} p(x|z), z from the prior",
        )  # fmt: skip
        typer.echo(f"{path}")
