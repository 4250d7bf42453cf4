"""``dvae-fast sample``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from dvae_fast.cli.console import check_seed, listed, one_line_errors, wrong_options
from dvae_fast.cli.outlet import say
from dvae_fast.cli.pictures import IN_ORDER, SAMPLED
from dvae_fast.files import write_atomically
from dvae_fast.plots import plot_samples
from dvae_fast.training import each_label, load_run

if TYPE_CHECKING:
    from dvae_fast.models import Autoencoder

__all__ = ["sample_command"]

_ARRAYS = ".npz"
_KINDS = (".png", ".pdf", ".svg", _ARRAYS)


def sample_command(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    n: Annotated[int, typer.Option("--n", "-n", help="How many images.")] = SAMPLED,
    seed: Annotated[int, typer.Option(help="Of the latents and draws.")] = 0,
    draw: Annotated[
        bool, typer.Option("--draw", help="Draw x ~ p(x|z) instead of showing its mean.")
    ] = False,
    label: Annotated[
        int | None,
        typer.Option(help="Of a model with labels: only of this one. Default: each in turn."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"A file that ends in {listed(_KINDS)}; {_ARRAYS} holds the array images, "
            "(n, height, width). Default: samples.png in the run's folder."
        ),
    ] = None,
) -> None:
    """Draw images from a run's best model and write them as one picture, or as an array."""
    with one_line_errors():
        with wrong_options():
            if n < 1:
                raise ValueError(f"n must be >= 1, got {n}")
            check_seed(seed)
            path = Path(out or run_dir / "samples.png")
            kind = path.suffix.lower()
            if kind not in _KINDS:
                raise ValueError(f"out must end in {listed(_KINDS)}, got {str(out)!r}")
        config, saved = load_run(run_dir)
        model = saved.model
        with wrong_options():
            context = _labels(label, model, n)
        images = model.sample(n, seed=seed, draw=draw, context=context)
        if kind == _ARRAYS:
            file = io.BytesIO()
            np.savez(file, images=images.reshape(n, *config.image_shape).numpy())
            write_atomically(path, file.getvalue())
        else:
            plot_samples(
                images, config.image_shape, path,
                title=f"{config.model} on {config.data}: {'draws from' if draw else 'means of'} "
                "p(x|z), z from the prior" + IN_ORDER * (context is not None and label is None),
            )  # fmt: skip
        say(f"{path}")


def _labels(label: int | None, model: Autoencoder, n: int) -> Tensor | None:
    """Of each of n images; None of a model without."""
    if label is None:
        return each_label(model, n)
    if not 0 <= label < model.context_size:
        rule = f"from 0 to {model.context_size - 1}" if model.context_size else "left out"
        raise ValueError(f"label must be {rule} for this model, got {label}")
    return torch.full((n,), label)
