"""``dvae-fast sample``."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer

from dvae_fast._extras import MissingExtraError
from dvae_fast.cli.console import check_seed, fail, listed, one_line_errors, wrong_options
from dvae_fast.cli.options import shown
from dvae_fast.cli.outlet import say
from dvae_fast.cli.pictures import IN_ORDER, SAMPLED, plot_draws
from dvae_fast.data import DataError, Scaling
from dvae_fast.files import write_atomically
from dvae_fast.models.config import OUTPUT
from dvae_fast.plots import plot_samples
from dvae_fast.training import each_label, load_run

if TYPE_CHECKING:
    from torch import Tensor

    from dvae_fast.models import Autoencoder
    from dvae_fast.training import TrainConfig

__all__ = ["sample_command"]

_ARRAYS = ".npz"
_TABLE = ".csv"
_SAMPLES = "Samples"
_KINDS = (".png", ".pdf", ".svg", _ARRAYS, _TABLE)


def sample_command(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    n: Annotated[int, shown(_SAMPLES, "How many images.", "--n", "-n")] = SAMPLED,
    seed: Annotated[int, shown(_SAMPLES, "Of the latents and draws.")] = 0,
    draw: Annotated[
        bool, shown(_SAMPLES, "Draw x ~ p(x|z) instead of showing its mean.", "--draw")
    ] = False,
    label: Annotated[
        str | None,
        shown(
            _SAMPLES,
            "Of a model with labels: only of this one, a number or a class's name. Default: each "
            "in turn.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        shown(
            OUTPUT,
            f"A file that ends in {listed(_KINDS)}; {_ARRAYS} holds the array images, "
            f"(n, height, width), or rows, and {_TABLE}, of a run on a table, those. Default: "
            "samples.png in the run's folder.",
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
        model, shape = saved.model, saved.model.image_shape
        if kind == _TABLE and shape is not None:
            fail(f"out must not end in {_TABLE} for a run on images, got {str(out)!r}", 2)
        with wrong_options():
            context = _labels(label, model, n, (config.names or {}).get("classes", []))
        title = f"{config.model} on {config.data_name}"
        if kind in (_ARRAYS, _TABLE):
            x = model.sample(n, seed=seed, draw=draw, context=context)
            _write_numbers(path, x if config.scaling is None else _undone(config, x), config, shape)
        elif shape is None:
            plot_draws(model, config.load_data(), seed, path, title, n, context)
        else:
            x = model.sample(n, seed=seed, draw=draw, context=context)
            plot_samples(
                x if config.kind.is_unit else _stretched(x), shape, path,
                title=f"{title}: {'draws from' if draw else 'means of'} p(x|z), z from the prior"
                + IN_ORDER * (context is not None and label is None),
            )  # fmt: skip
        say(f"{path}")


def _labels(label: str | None, model: Autoencoder, n: int, classes: list[str]) -> Tensor | None:
    """Of each of n images; None of a model without."""
    if label is None:
        return each_label(model, n)
    # A class called "1" before label 1: whoever named classes speaks of names.
    number = str(classes.index(label)) if label in classes else label
    if number.isdecimal() and int(number) < model.context_size:
        return torch.full((n,), int(number), device="cpu")
    rule = f"from 0 to {model.context_size - 1}" if model.context_size else "left out"
    if model.context_size and classes:
        rule += f", or one of {', '.join(classes)},"
    raise ValueError(f"label must be {rule} for this model, got {label}")


def _undone(config: TrainConfig, x: Tensor) -> Tensor:
    """x in the units of the user's data."""
    assert config.scaling is not None
    return Scaling.from_dict(config.scaling).undo(x)


def _stretched(x: Tensor) -> Tensor:
    """x as shades, from its least value to its largest."""
    low, high = float(x.min()), float(x.max())
    return (x - low) / (high - low if high > low else 1.0)


def _write_numbers(
    path: Path, x: Tensor, config: TrainConfig, shape: tuple[int, ...] | None
) -> None:
    if path.suffix.lower() == _ARRAYS:
        file = io.BytesIO()
        values = x.float().numpy()
        if shape is None:
            np.savez(file, rows=values)
        else:
            np.savez(file, images=values.reshape(len(values), *shape))
        write_atomically(path, file.getvalue())
        return
    columns: tuple[str, ...] = ()
    with contextlib.suppress(DataError, MissingExtraError):  # the numbers do without names
        columns = config.load_data().columns
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns or [f"column {i}" for i in range(x.shape[1])])
    writer.writerows([f"{value:.7g}" for value in row] for row in x.tolist())
    write_atomically(path, text.getvalue().encode())
