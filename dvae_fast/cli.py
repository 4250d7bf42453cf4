"""The command line: ``dvae-fast train | evaluate | sample | reproduce | info | check``.

Exit codes: 0 done; 1 something is missing, damaged or cannot be written; 2 an option is wrong;
128 + the signal's number (130 for Ctrl-C) interrupted.

``torchrun --nproc-per-node N -m dvae_fast train | evaluate`` shares the work among N processes;
rank 0 alone prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import math
import os
import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from dvae_fast._extras import INSTALL, MissingExtraError

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Table
except ModuleNotFoundError as error:
    raise SystemExit(
        f"dvae-fast: the command line needs the package {error.name}, which is not installed: "
        f"{INSTALL}"
    ) from None

from dvae_fast.checking.cli import check_command
from dvae_fast.checkpoint import (
    CHECKPOINT,
    CheckpointError,
    load_model,
    write_atomically,
    write_json,
)
from dvae_fast.corruptions import CORRUPTIONS
from dvae_fast.data import (
    BINARISATIONS,
    DATASETS,
    GREY_LEVEL_DATASETS,
    SPLITS,
    DataError,
    Dataset,
)
from dvae_fast.distributed import (
    DistributedError,
    World,
    barrier,
    broadcast_object,
    is_main_process,
    join,
    on_main,
)
from dvae_fast.estimates import LikelihoodEstimate
from dvae_fast.evaluate import DTYPES, METHODS, estimate_log_likelihood
from dvae_fast.experiments import processes, table
from dvae_fast.experiments.rows import FIGURES, ROWS, SCALES, Row, Scale, select
from dvae_fast.experiments.runs import Run, plan, read_results, unfinished
from dvae_fast.inference import INFERENCES
from dvae_fast.learnable_corruptions import LEVEL_ESTIMATORS
from dvae_fast.likelihoods import LIKELIHOODS
from dvae_fast.models import MODELS, LatentVariableModel
from dvae_fast.networks import ACTIVATIONS, POSTERIORS
from dvae_fast.objectives import ESTIMATORS, OBJECTIVES, Objective
from dvae_fast.partial import PARTIAL, partial_exists, remove_partial
from dvae_fast.plots import (
    plot_bounds,
    plot_ess,
    plot_learning_curve,
    plot_reconstructions,
    plot_samples,
    plot_worst,
)
from dvae_fast.proposals import PROPOSALS
from dvae_fast.train import (
    DEFAULT_EPOCHS,
    DEFAULT_LEARNING_RATES,
    DEFAULT_LEVEL,
    LR_SCHEDULES,
    METRICS,
    NonFiniteError,
    TrainConfig,
    check_device,
    check_world,
    cpu_threads,
    default_config,
    load_config,
    reconstructions,
    train,
)
from dvae_fast.train import Progress as TrainProgress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from dvae_fast.ais import AISEstimate
    from dvae_fast.progress import EvaluationProgress

__all__ = ["app", "main"]

RUNS = Path("runs")
EVALUATION = "evaluation.json"
DOCUMENT = Path("docs/reproduction.md")
_PICTURED = 10  # examples in the picture of reconstructions
_SAMPLED = 100
_SIDE = 13  # images a side of the picture of two latents

app = typer.Typer(
    help="Train denoising variational autoencoders and judge them by importance sampling.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def main() -> None:
    """Entry point of ``dvae-fast`` and ``python -m dvae_fast``."""
    app(prog_name="dvae-fast")


# --- messages ---------------------------------------------------------------------------------


def _fail(message: str, code: int, *, shared: bool = False) -> NoReturn:
    """`shared`: every process of the run fails alike, and one message is enough."""
    if is_main_process() or not shared:
        typer.echo(f"dvae-fast: {message}", err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """What a user can put right becomes one line; anything else is a defect, with a traceback."""
    try:
        yield
    except NonFiniteError as error:
        _fail(str(error), 1, shared=True)
    except (CheckpointError, DataError, DistributedError, MissingExtraError) as error:
        _fail(str(error), 1, shared=isinstance(error.__cause__, DistributedError))
    except KeyboardInterrupt:
        _fail("interrupted", 130, shared=True)


@contextlib.contextmanager
def _wrong_options(*, shared: bool = True) -> Iterator[None]:
    """A ValueError from checking the options is the user's."""
    try:
        yield
    except ValueError as error:
        _fail(str(error), 2, shared=shared)


def _number(value: float, digits: int = 2) -> str:
    return f"{value:,.{digits}f}".replace("-", "−") if math.isfinite(value) else str(value)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–:––"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _names(choices: Iterable[str]) -> str:
    return ", ".join(choices)


def _by_data(values: Mapping[str, float]) -> str:
    return _names(f"{value:g} for {data}" for data, value in values.items())


def _table(rows: Iterable[tuple[str, str]], title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


# --- train ------------------------------------------------------------------------------------


def _hidden_sizes(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(
            f"{option} must be sizes separated by commas, such as 200,200; got {text!r}"
        ) from None


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to {2**63 - 1}, got {seed}")


def _new_run_dir(config: TrainConfig) -> Path:
    stem = f"{config.model}-{config.data}-{datetime.now():%Y%m%d-%H%M%S}"
    path, count = RUNS / stem, 1
    while True:
        try:
            path.mkdir(parents=True)  # claims it: another run may begin in the same second
        except FileExistsError:
            count += 1
            path = RUNS / f"{stem}-{count}"
            continue
        except OSError:
            pass  # training says what is wrong with it
        return path


def _latest_run_dir() -> Path:
    checkpoints = list(RUNS.glob(f"*/{CHECKPOINT}"))
    if not checkpoints:
        raise CheckpointError(
            f"no run to resume: no folder of {RUNS.resolve()} holds a {CHECKPOINT}; name one with "
            "--run-dir"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parent


@app.command("train")
def train_command(
    context: typer.Context,
    model: Annotated[str, typer.Option(help=f"One of {_names(MODELS)}.")] = "diwae",
    data: Annotated[str, typer.Option(help=f"One of {_names(DATASETS)}.")] = "digits",
    binarise: Annotated[
        str | None,
        typer.Option(
            help=f"One of {_names(BINARISATIONS)}; fixed for mnist alone. "
            "Default: dynamic; none for frey."
        ),
    ] = None,
    corruption: Annotated[
        str | None,
        typer.Option(
            help=f"For dvae and diwae, one of {_names(CORRUPTIONS)}. "
            "Default: salt-and-pepper; gaussian for any likelihood but bernoulli."
        ),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            help=f"The corruption's rate, or standard deviation. Default: {DEFAULT_LEVEL}."
        ),
    ] = None,
    per_pixel: Annotated[
        bool,
        typer.Option(
            "--per-pixel/--no-per-pixel",
            help="A rate for each pixel, in proportion to the mean image, --level on average.",
        ),
    ] = False,
    learn_level: Annotated[
        str | None,
        typer.Option(
            help=f"Learn the level, by one of {_names(LEVEL_ESTIMATORS)} (pathwise for gaussian, "
            "score with -M 2 or more). Default: it stays."
        ),
    ] = None,
    M: Annotated[
        int,
        typer.Option(
            "--copies",
            "-M",
            help="Corruptions of each example; for vae and iwae, groups of samples.",
        ),
    ] = 1,
    K: Annotated[
        int | None,
        typer.Option(
            "--samples",
            "-K",
            help="Latent samples of each corruption. Default: 5 inside the logarithm (iwae and "
            "diwae) or with vimco, else 1.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            help=f"One of {_names(OBJECTIVES)}. Default: elbo for vae and dvae, iwae for iwae "
            "and diwae."
        ),
    ] = None,
    estimator: Annotated[
        str, typer.Option(help=f"Of the encoder's gradient, one of {_names(ESTIMATORS)}.")
    ] = "standard",
    beta: Annotated[
        float | None, typer.Option(help="Of ciwae: 0 is iwae, 1 elbo. Default: 0.5.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Of vr: 0 is iwae, 1 elbo. Default: 0.5.")
    ] = None,
    kl_warmup: Annotated[
        int,
        typer.Option(help="Epochs over which the divergence's weight in the gradient rises to 1."),
    ] = 0,
    free_bits: Annotated[
        float, typer.Option(help="Of elbo-kl: nats a latent dimension that cost nothing.")
    ] = 0.0,
    latent: Annotated[int, typer.Option(help="Latent dimensions.")] = 50,
    hidden: Annotated[str, typer.Option(help="Hidden layers of the encoder.")] = "200,200",
    decoder_hidden: Annotated[
        str | None,
        typer.Option(help="Hidden layers of the decoder. Default: the encoder's in reverse."),
    ] = None,
    activation: Annotated[str, typer.Option(help=f"One of {_names(ACTIVATIONS)}.")] = "softplus",
    inference: Annotated[
        str, typer.Option(help=f"The encoder, one of {_names(INFERENCES)}.")
    ] = "mlp",
    posterior: Annotated[
        str, typer.Option(help=f"The posterior's covariance, one of {_names(POSTERIORS)}.")
    ] = "diagonal",
    likelihood: Annotated[
        str | None,
        typer.Option(
            help=f"One of {_names(LIKELIHOODS)}. Default: bernoulli; gaussian for grey frey. "
            f"discretised_logistic is for grey {_names(GREY_LEVEL_DATASETS)}; "
            "negative_binomial, of counts, for none of these data sets."
        ),
    ] = None,
    train_examples: Annotated[
        int | None, typer.Option(help="Train on the first so many images alone. Default: all.")
    ] = None,
    valid_examples: Annotated[
        int | None, typer.Option(help="Validate on the first so many alone. Default: all.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help=f"Default: {_by_data(DEFAULT_EPOCHS)}."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Examples a step, of all processes together.")
    ] = 100,
    learning_rate: Annotated[
        float | None,
        typer.Option(help=f"Adam's, at the start. Default: {_by_data(DEFAULT_LEARNING_RATES)}."),
    ] = None,
    lr_schedule: Annotated[
        str,
        typer.Option(
            help=f"One of {_names(LR_SCHEDULES)}; stepwise falls to a tenth in eight stages."
        ),
    ] = "constant",
    seed: Annotated[int, typer.Option(help="Governs everything random in training.")] = 0,
    data_seed: Annotated[
        int, typer.Option(help="Governs the split and the binarised validation and test sets.")
    ] = 0,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of each process. Default: PyTorch's choice.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    cuda_graph: Annotated[
        bool,
        typer.Option("--cuda-graph/--no-cuda-graph", help="Replay a step as one CUDA graph."),
    ] = False,
    run_dir: Annotated[
        Path | None, typer.Option(help="Default: runs/<model>-<data>-<date>-<time>.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --run-dir, or the latest of runs/."),
    ] = False,
    evaluate_k: Annotated[
        int,
        typer.Option(help="Importance samples for the test set's log-likelihood; 0: none."),
    ] = 5000,
    no_tensorboard: Annotated[
        bool, typer.Option("--no-tensorboard", help="Write no TensorBoard events.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")] = False,
) -> None:
    """Train a model; with no options, a DIWAE on scikit-learn's digits.

    Leaves a folder with the model, checkpoints to resume from, metrics.json and pictures.
    """
    with _one_line_errors():
        with _wrong_options():
            values = {
                "model": model,
                "data": data,
                "binarise": binarise,
                "corruption": corruption,
                "level": level,
                "per_pixel": per_pixel,
                "learn_level": learn_level,
                "M": M,
                "K": K,
                "objective": objective,
                "estimator": estimator,
                "beta": beta,
                "alpha": alpha,
                "kl_warmup": kl_warmup,
                "free_bits": free_bits,
                "latent_size": latent,
                "hidden_sizes": _hidden_sizes("hidden", hidden),
                "decoder_hidden_sizes": _hidden_sizes("decoder-hidden", decoder_hidden),
                "activation": activation,
                "inference": inference,
                "posterior": posterior,
                "likelihood": likelihood,
                "train_examples": train_examples,
                "valid_examples": valid_examples,
                "epochs": epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "lr_schedule": lr_schedule,
                "seed": seed,
                "data_seed": data_seed,
                "threads": threads,
                "device": device,
                "cuda_graph": cuda_graph,
            }
            if evaluate_k < 0:
                raise ValueError(f"evaluate-k must be >= 0, got {evaluate_k}")
            if resume:
                run_dir = run_dir or _latest_run_dir()
                given = {_FIELDS.get(name, name) for name in _given(context)}
                values = {k: v for k, v in values.items() if k in given and v is not None}
                if values.get("device") == "cpu":
                    values.setdefault("cuda_graph", False)
                config = TrainConfig.from_dict(load_config(run_dir).to_dict() | values)
            else:
                config = default_config(**values)  # type: ignore[arg-type]
            check_device("device", config.device)
        console = Console(quiet=quiet or not is_main_process(), highlight=False)
        folder, metrics = _train_together(
            console, config, run_dir, resume=resume, tensorboard=not no_tensorboard
        )
        if not is_main_process():
            return
        judge = _judge(folder)
        pictures = _pictures(console, config, folder, metrics)
        rows = [
            ("best epoch", f"{metrics['best']['epoch']} of {config.epochs}"),
            ("validation bound", f"{_number(metrics['best']['valid_bound'])} nats"),
            ("test bound", f"{_number(metrics['test_bound'])} nats"),
        ]
        if "learnt_level" in metrics:
            learnt = f"{metrics['learnt_level']:.4g}, from {config.level:g}"
            rows.append((f"{config.corruption} level", learnt))
        if evaluate_k:
            try:
                with cpu_threads(config.threads):
                    report, estimate = _evaluate(
                        console, folder, _alone(config.device), k=evaluate_k
                    )
            except KeyboardInterrupt:
                _fail(f"interrupted after training; to judge the model: {judge}", 130)
            metrics["evaluation"] = report
            _keep(console, folder, report, estimate)
            write_json(folder / METRICS, metrics)
            rows += _evaluation_rows(report)
        rows.append(("files", f"{folder}: {_names([METRICS, *pictures])}, …"))
        console.print()
        console.print(_table(rows, f"{config.model} on {config.data}"))
        if evaluate_k:
            _warn(console, metrics["evaluation"])


#: configuration fields by the parameters of `train_command`, where they differ
_FIELDS = {
    "latent": "latent_size",
    "hidden": "hidden_sizes",
    "decoder_hidden": "decoder_hidden_sizes",
}


def _given(context: typer.Context) -> set[str]:
    """The parameters that stand on the command line, as against those left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _alone(device: str) -> World:
    """This process, whatever others have trained with it."""
    return World(0, 1, 0, torch.device(device))


def _judge(folder: Path) -> str:
    return f"dvae-fast evaluate {shlex.quote(str(folder))}"


def _train_together(
    console: Console,
    config: TrainConfig,
    run_dir: Path | None,
    *,
    resume: bool,
    tensorboard: bool,
) -> tuple[Path, dict[str, Any]]:
    """Train in the world this process belongs to: the folder, and what training returns."""
    with contextlib.ExitStack() as stack:
        with _wrong_options(shared=False):  # each process has an environment of its own
            world = stack.enter_context(join(config.device))
        with _wrong_options():
            check_world(config, world)
        stack.enter_context(_one_line_errors())  # told while the others are still there
        claimed = _new_run_dir(config) if run_dir is None and world.is_main else run_dir
        folder = broadcast_object(claimed, world)
        assert folder is not None
        if not console.quiet:
            _announce(console, config, folder, world, resume)
        try:
            metrics = _train(console, config, folder, resume=resume, tensorboard=tensorboard)
        except BaseException:
            if run_dir is None and world.is_main:
                with contextlib.suppress(OSError):  # nothing was put there
                    folder.rmdir()
                    RUNS.rmdir()
            raise
        if metrics["status"] == "interrupted":
            command = f"dvae-fast train --resume --run-dir {shlex.quote(str(folder))}"
            _stop(
                f"interrupted after {metrics['epochs_done']} of {config.epochs} epochs; all is "
                f"saved, go on with: {command}",
                metrics["signal"],
                world,
            )
        if "signal" in metrics:
            message = f"trained, then interrupted; to judge the model: {_judge(folder)}"
            _stop(message, metrics["signal"], world)
    return folder, metrics


def _stop(message: str, signal: int, world: World) -> NoReturn:
    # torchrun ends all processes when the first fails: not before the message is out.
    on_main(lambda: typer.echo(f"dvae-fast: {message}", err=True), world)
    raise typer.Exit(128 + signal)


def _announce(
    console: Console, config: TrainConfig, folder: Path, world: World, resume: bool
) -> None:
    values = "grey values" if config.binarise == "none" else f"{config.binarise} binarisation"
    parts = [values, f"{config.likelihood} likelihood"]
    if config.inference != "mlp":
        parts.append(f"{config.inference} encoder")
    if config.posterior != "diagonal":
        parts.append(f"{config.posterior} covariance")
    if MODELS[config.model].denoising:
        how = " by pixel" * config.per_pixel + ", learnt" * (config.learn_level is not None)
        parts.append(f"{config.corruption} {config.level:g}{how}, M = {config.M}")
    elif config.M > 1:
        parts.append(f"M = {config.M}")
    parts.append(f"K = {config.K}")
    if world.size > 1:
        parts.append(f"{world.size} processes")
    objective = config.make_objective()
    if objective != Objective(MODELS[config.model].default_objective):
        parts.append(f"objective {objective}")
    console.print(
        f"{'Resuming' if resume else 'Training'} {config.model} on {config.data} "
        f"({', '.join(parts)}); run folder {folder}",
        soft_wrap=True,
        markup=False,
    )


def _train(
    console: Console, config: TrainConfig, folder: Path, *, resume: bool, tensorboard: bool
) -> dict[str, Any]:
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("bound {task.fields[bound]} nats"),
        TextColumn("{task.fields[rate]} examples/s"),
        TextColumn("{task.fields[left]} left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        auto_refresh=False,
    )
    task = bar.add_task("", epoch=f"1/{config.epochs}", bound="–", rate="–", left="–:––", total=1)
    every = max(1, config.epochs // 10)

    def on_progress(state: TrainProgress) -> None:
        fields: dict[str, Any] = {
            "epoch": f"{state.epoch}/{state.epochs}",
            "rate": f"{state.examples_per_second:,.0f}",
            "left": _duration(state.seconds_left),
        }
        if math.isfinite(state.bound):
            fields["bound"] = _number(state.bound)
        bar.update(
            task, completed=state.examples, total=state.total_examples, refresh=True, **fields
        )

    def on_epoch(record: dict[str, float]) -> None:
        epoch = int(record["epoch"])
        if epoch % every == 0 or epoch in (1, config.epochs):
            console.print(
                f"epoch {epoch:>{len(str(config.epochs))}}/{config.epochs}   "
                f"bound: train {_number(record['train_bound'])}, "
                f"valid {_number(record['valid_bound'])} nats   "
                f"{record['examples_per_second']:,.0f} examples/s",
                soft_wrap=True,
            )

    quiet = console.quiet
    with contextlib.nullcontext() if quiet else bar, _wrong_options():
        return train(
            config,
            folder,
            resume=resume,
            tensorboard=tensorboard,
            on_progress=None if quiet else on_progress,
            on_epoch=None if quiet else on_epoch,
        )


def _pictures(
    console: Console, config: TrainConfig, folder: Path, metrics: dict[str, Any]
) -> list[str]:
    """The run's PNGs; their names. Without matplotlib, one line that says so."""
    model, data = load_model(folder), config.load_data()
    title = f"{config.model} on {config.data}"
    try:
        plot_learning_curve(metrics["history"], folder / "learning_curve.png", title=title)
        plot_samples(
            model.sample(_SAMPLED, seed=config.seed), data.image_shape, folder / "samples.png",
            title=f"{title}: means of p(x|z), z from the prior",
        )  # fmt: skip
        _plot_reconstructions(model, data, config, folder / "reconstructions.png", title)
        names = ["learning_curve.png", "samples.png", "reconstructions.png"]
        if model.latent_size == 2:
            plot_samples(
                model.manifold(_SIDE).flatten(0, 1), data.image_shape, folder / "manifold.png",
                columns=_SIDE, title=f"{title}: the plane of two latents",
            )  # fmt: skip
            names.append("manifold.png")
    except MissingExtraError as error:
        console.print(f"No pictures: {error}", soft_wrap=True, markup=False)
        return []
    return names


def _plot_reconstructions(
    model: LatentVariableModel, data: Dataset, config: TrainConfig, path: Path, title: str
) -> None:
    x, noisy, means = reconstructions(model, data.evaluation("test")[:_PICTURED], config.seed)
    given = noisy if model.corruption is not None else None
    plot_reconstructions(x, given, means, data.image_shape, path, title=f"{title}: test set")


# --- evaluate ---------------------------------------------------------------------------------


@app.command("evaluate")
def evaluate_command(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    k: Annotated[
        int | None,
        typer.Option(
            "--k", "-k", help="Importance samples an example, or AIS chains.  [default: 5000, 16]"
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help=f"One of {_names(METHODS)}: importance sampling, or annealed, slower."),
    ] = "importance",
    split: Annotated[str, typer.Option(help=f"One of {_names(SPLITS)}.")] = "test",
    limit: Annotated[
        int | None, typer.Option(help="Only the first so many examples. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the importance samples.")] = 0,
    proposal: Annotated[
        str,
        typer.Option(
            help=f"Draw z from one of {_names(PROPOSALS)}: q(z|x), q(z|x̃) with a fresh x̃ for each "
            "sample, or the mean of q(z|x̃) over --copies corruptions."
        ),
    ] = "posterior",
    copies: Annotated[int, typer.Option(help="Corruptions of a mixture.")] = 10,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Go on where the standard error in nats is above this, as far as --max-k. "
            "Default: k samples everywhere."
        ),
    ] = None,
    max_k: Annotated[
        int | None, typer.Option("--max-k", help="With a tolerance. Default: 20 k.")
    ] = None,
    temperatures: Annotated[
        int | None, typer.Option(help="Of AIS: distributions on the way.  [default: 500]")
    ] = None,
    leapfrog: Annotated[
        int | None, typer.Option(help="Of AIS: steps of a Hamiltonian move.  [default: 10]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the decoder's products: bfloat16 or float16. Default: the model's."),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Run the decoder through torch.compile.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples at once; changes speed and memory alone.")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Samples at once; changes speed and memory alone.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. Default: PyTorch's choice.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an evaluation that was interrupted.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")] = False,
) -> None:
    """Estimate log p(x) of a run's best model by importance sampling.

    Writes evaluation.json, evaluation.npz with each example's numbers, and pictures, into the
    run's folder.
    """
    with _one_line_errors():
        with _wrong_options():
            for name, value, valid in (
                ("split", split, SPLITS), ("method", method, METHODS),
                ("proposal", proposal, PROPOSALS), ("dtype", dtype, (None, *DTYPES)),
            ):  # fmt: skip
                if value not in valid:
                    raise ValueError(
                        f"{name} must be one of {_names(v for v in valid if v)}; got {value!r}"
                    )
            for name, count in (
                ("k", k), ("limit", limit), ("batch-size", batch_size), ("chunk", chunk),
                ("threads", threads), ("max-k", max_k), ("copies", copies),
                ("temperatures", temperatures), ("leapfrog", leapfrog),
            ):  # fmt: skip
                if count is not None and count < 1:
                    raise ValueError(f"{name} must be >= 1, got {count}")
            if tolerance is not None and not 0 < tolerance < math.inf:
                raise ValueError(f"tolerance must be > 0 and finite, got {tolerance}")
            if max_k is not None and tolerance is None:
                raise ValueError("max-k must come with a tolerance")
            if max_k is not None and max_k < (k or 5000):
                raise ValueError(f"max-k must be >= k = {k or 5000}, got {max_k}")
            _check_seed(seed)
            check_device("device", device)
        options: dict[str, Any] = {"k": k, "seed": seed, "batch_size": batch_size}
        importance = {
            "proposal": proposal, "copies": copies, "tolerance": tolerance, "max_k": max_k,
            "dtype": dtype, "compile": compile, "chunk": chunk, "resume": resume,
        }  # fmt: skip
        ais = {"temperatures": temperatures, "leapfrog": leapfrog}
        with _wrong_options():
            if copies != _UNSET["copies"] and proposal != "mixture":
                raise ValueError("copies must come with the proposal mixture")
            options |= _of_method(method, {"importance": importance, "ais": ais})
        console = Console(quiet=quiet or not is_main_process(), highlight=False)
        with contextlib.ExitStack() as stack:
            stack.enter_context(cpu_threads(threads))
            with _wrong_options(shared=False):  # each process has an environment of its own
                world = stack.enter_context(join(device))
            if method == "ais" and world.size > 1:
                _fail("method must be importance for several processes, got ais", 2, shared=True)
            report, estimate = _evaluate(
                console, run_dir, world, method=method, split=split, limit=limit, **options
            )
        if not is_main_process():
            return
        title = f"{report['model']} on {report['data']}, {report['split']} set"
        console.print(_table(_evaluation_rows(report), title))
        _warn(console, report)
        _keep(console, run_dir, report, estimate)  # last: a full disk does not take all along


def _of_method(method: str, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The options of this method; ValueError if one of another method is given."""
    for other, theirs in options.items():
        for name, value in theirs.items():
            if other != method and value != _UNSET.get(name):
                option = name.replace("_", "-")
                raise ValueError(f"{option} must be left out with method {method}")
    return {name: value for name, value in options[method].items() if value is not None}


#: what options are if they are not given, where that is not None
_UNSET = {"proposal": "posterior", "copies": 10, "compile": False, "resume": False}


def _evaluate(
    console: Console,
    folder: Path,
    world: World,
    *,
    k: int | None,
    method: str = "importance",
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    resume: bool = False,
    **options: Any,
) -> tuple[dict[str, Any], LikelihoodEstimate | AISEstimate]:
    """Judge the run's best model: what evaluation.json holds, and all of it."""
    config, model = load_config(folder), load_model(folder).to(world.device)
    x = config.load_data().evaluation(split)[:limit]
    with _evaluation_bar(console, world) as advance:
        start = time.perf_counter()
        estimate: LikelihoodEstimate | AISEstimate
        with _wrong_options():
            if method == "ais":
                estimate = estimate_log_likelihood(
                    model, x, k, method="ais", seed=seed, progress=advance, **options
                )
            else:
                partial = folder / PARTIAL
                if not resume and world.is_main and remove_partial(partial):
                    console.print(
                        "An unfinished evaluation is dropped; --resume would have gone on with it."
                    )
                barrier(world)
                try:
                    estimate = estimate_log_likelihood(
                        model, x, k, seed=seed, progress=advance, partial=partial, world=world,
                        **options,
                    )  # fmt: skip
                except KeyboardInterrupt:
                    kept = "; what is done is kept, go on with --resume"
                    _fail(f"interrupted{kept if partial_exists(partial) else ''}", 130, shared=True)
        seconds = time.perf_counter() - start
    report = {
        "model": config.model,
        "data": config.data,
        "binarise": config.binarise,
        "likelihood": config.likelihood,
        "split": split,
        **estimate.summary(),
    }
    report["seconds"] = seconds
    report["processes"] = world.size
    return report, estimate


def _keep(
    console: Console,
    folder: Path,
    report: dict[str, Any],
    estimate: LikelihoodEstimate | AISEstimate,
) -> None:
    """evaluation.json, evaluation.npz with each example's numbers, and pictures."""
    write_json(folder / EVALUATION, report)
    file = io.BytesIO()
    np.savez(file, **_arrays(estimate))
    write_atomically((folder / EVALUATION).with_suffix(".npz"), file.getvalue())
    remove_partial(folder / PARTIAL)
    for name in ("bounds", "ess", "worst"):  # of an earlier evaluation
        (folder / f"evaluation_{name}.png").unlink(missing_ok=True)
    try:
        _plot_evaluation(folder, report, estimate)
    except MissingExtraError as error:
        console.print(f"No pictures: {error}", soft_wrap=True, markup=False)


def _arrays(estimate: LikelihoodEstimate | AISEstimate) -> dict[str, Any]:
    """All that has a number an example, and the k of the curve."""
    values = {f.name: getattr(estimate, f.name) for f in dataclasses.fields(estimate)}
    arrays = {name: v.numpy() for name, v in values.items() if isinstance(v, Tensor)}
    if "curve_k" in values:
        arrays["curve_k"] = np.array(values["curve_k"])
    return arrays


def _plot_evaluation(
    folder: Path, report: dict[str, Any], estimate: LikelihoodEstimate | AISEstimate
) -> None:
    title = f"{report['model']} on {report['data']}, {report['split']} set"
    if isinstance(estimate, LikelihoodEstimate):
        if len(estimate.curve_k) > 1:
            plot_bounds(
                estimate.curve_k, estimate.curve, estimate.curve_standard_error,
                folder / "evaluation_bounds.png", title=title,
            )  # fmt: skip
        plot_ess(estimate.ess, estimate.spent, folder / "evaluation_ess.png", title=title)
    config, model = load_config(folder), load_model(folder)
    data = config.load_data()
    worst = estimate.log_likelihood.nan_to_num(-math.inf).argsort()[:_PICTURED]
    x = data.evaluation(report["split"])[worst]
    labels = [f"#{i}\n{estimate.log_likelihood[i]:.1f}" for i in worst.tolist()]
    plot_worst(
        x, model.reconstruct(x), labels, data.image_shape, folder / "evaluation_worst.png",
        title=f"{title}: lowest log p(x), in nats",
    )  # fmt: skip


def _warn(console: Console, report: dict[str, Any]) -> None:
    for text in report["warnings"]:
        console.print(f"Warning: {text}", soft_wrap=True, markup=False)


@contextlib.contextmanager
def _evaluation_bar(console: Console, world: World) -> Iterator[Any]:
    """A bar of this process's share; the others' goes at about the same pace."""
    if console.quiet:
        yield None
        return
    bar = Progress(
        TextColumn("evaluating"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total} examples"),
        TextColumn("{task.fields[rate]} samples/s"),
        TextColumn("log p(x) {task.fields[value]} nats"),
        TextColumn("{task.fields[left]} left"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=None, rate="–", value="–", left="–:––")
    start = time.perf_counter()

    def advance(state: EvaluationProgress) -> None:
        seconds = time.perf_counter() - start
        value = "not finite"
        if math.isfinite(state.log_likelihood):
            value = f"{_number(state.log_likelihood)} ± {_number(state.standard_error, 3)}"
        bar.update(
            task,
            total=state.total,
            completed=state.examples,
            rate=f"{world.size * state.samples / max(seconds, 1e-9):,.0f}",
            value=value,
            left=_duration(seconds * (state.total - state.examples) / state.examples),
        )

    with bar:
        yield advance


def _evaluation_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    def shown(key: str, digits: int = 2) -> str:
        value = report[key]
        return "not finite" if value is None else _number(value, digits)

    annealed = report["method"] == "ais"
    if annealed:
        samples = f"{report['chains']} chains, {report['temperatures']} temperatures"
    elif report["samples"] == report["k"] * report["examples"]:
        samples = f"k = {report['k']:,}"
    else:
        samples = f"k = {report['samples'] / report['examples']:,.0f} on average"
    density = ", of a density on [0, 1]" if report["likelihood"] == "gaussian" else ""
    rows = [
        (
            "log p(x)",
            f"{shown('log_likelihood')} ± {shown('standard_error', 3)} nats "
            f"({samples}, {report['examples']:,} examples)",
        ),
        ("bits per dimension", shown("bits_per_dimension", 4) + density),
    ]
    if annealed:
        rows += [
            ("acceptance", shown("acceptance")),
            (
                "effective chains",
                f"{shown('ess_mean', 1)} on average, {shown('ess_min', 1)} at least",
            ),
        ]
    else:
        rows += [
            ("ELBO", f"{shown('elbo')} nats"),
            (
                "effective samples",
                f"{shown('ess_mean', 1)} on average, {shown('ess_min', 1)} at least, below 10 for "
                f"{report['ess_below_10']:,}",
            ),
            ("Pareto k̂", f"above 0.7 for {report['pareto_k_above_0.7']:,} examples"),
        ]
    rows.append(("evaluated in", f"{report['seconds']:.1f} s"))
    if report["non_finite"]:
        rows.append(("not finite", f"{report['non_finite']} of {report['examples']} examples"))
    return rows


# --- sample -----------------------------------------------------------------------------------


@app.command("sample")
def sample_command(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    n: Annotated[int, typer.Option("--n", "-n", help="How many images.")] = _SAMPLED,
    seed: Annotated[int, typer.Option(help="Of the latents and draws.")] = 0,
    draw: Annotated[
        bool, typer.Option("--draw", help="Draw x ~ p(x|z) instead of showing its mean.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The PNG. Default: samples.png in the run's folder.")
    ] = None,
) -> None:
    """Draw images from a run's best model and write them as one PNG."""
    with _one_line_errors():
        with _wrong_options():
            if n < 1:
                raise ValueError(f"n must be >= 1, got {n}")
            _check_seed(seed)
        config, model = load_config(run_dir), load_model(run_dir)
        path = out or run_dir / "samples.png"
        kind = "draws from" if draw else "means of"
        images = model.sample(n, seed=seed, draw=draw)
        plot_samples(
            images, config.image_shape, path,
            title=f"{config.model} on {config.data}: {kind} p(x|z), z from the prior",
        )  # fmt: skip
        typer.echo(f"{path}")


# --- reproduce --------------------------------------------------------------------------------


@app.command("reproduce")
def reproduce_command(
    scale: Annotated[
        str,
        typer.Option(
            help=f"One of {_names(SCALES)}: "
            f"{'; '.join(f'{name} is {s.about}' for name, s in SCALES.items())}."
        ),
    ] = "small",
    rows: Annotated[
        list[str] | None,
        typer.Option(
            help="A row's name or a glob, such as '*gru*'; may be given again. Default: the "
            "scale's, which --list marks."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of every run. Default: the scale's.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Of every row. Default: the scale's.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="Runs at once, each on one thread. Default: a core each; 1 on a GPU."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda or cuda:N; on a GPU steps are replayed as CUDA graphs.")
    ] = "cpu",
    folder: Annotated[
        Path | None, typer.Option(help="Of the runs. Default: runs/reproduction-<scale>.")
    ] = None,
    list_rows: Annotated[
        bool, typer.Option("--list", help="Print the rows and what was published for them.")
    ] = False,
    write_table: Annotated[
        bool, typer.Option("--table", help="Write the table of the finished runs; train nothing.")
    ] = False,
    output: Annotated[
        Path, typer.Option(help="Of the table: a new file, or one with a place for it.")
    ] = DOCUMENT,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")] = False,
) -> None:
    """Train the rows of the published tables and write ours beside them.

    Leaves a JSON file for each row and seed. The same command goes on where it was stopped and
    leaves out what is finished.
    """
    with _one_line_errors():
        with _wrong_options():
            if scale not in SCALES:
                raise ValueError(f"scale must be one of {_names(SCALES)}; got {scale!r}")
            chosen = select(rows or SCALES[scale].rows)
            jobs = _jobs(jobs, device)
            check_device("device", device)
            runs = plan(chosen, SCALES[scale], epochs=epochs, seeds=seeds, device=device)
            if os.environ.get("WORLD_SIZE", "1") != "1":
                raise ValueError("reproduce starts its processes itself: run it without torchrun")
        console = Console(quiet=quiet, highlight=False)
        folder = folder or RUNS / f"reproduction-{scale}"
        if list_rows:
            console.print(_rows_table(chosen if rows else ROWS.values(), SCALES[scale]))
            return
        if write_table:
            with _wrong_options():
                table.put_into(output, table.markdown(read_results(folder)), scale)
            console.print(f"{output}", soft_wrap=True)
            return
        with _wrong_options():
            left = unfinished(runs, folder)
        failed = _reproduce(console, left, len(runs), folder, jobs)
        console.print(
            f"{len(runs) - len(failed)} of {len(runs)} runs are in {folder}; for the table: "
            f"dvae-fast reproduce --table --scale {scale} --folder {shlex.quote(str(folder))}",
            soft_wrap=True,
            markup=False,
        )
        if failed:
            _fail(f"failed: {_names(failed)}; the same command tries again", 1)


def _jobs(jobs: int | None, device: str) -> int:
    if jobs is None:
        if device != "cpu":
            return 1
        # Those that this process may use, where the system can tell.
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    return jobs


def _rows_table(rows: Iterable[Row], scale: Scale) -> Table:
    shown = Table(title="Rows (* run by default at this scale)", title_justify="left", box=None)
    for name in ("", "row", "what", "seeds", "epochs", "published", "protocol"):
        shown.add_column(name, no_wrap=name == "row", overflow="fold")
    default = select(scale.rows)
    for row in rows:
        shown.add_row(
            "*" * (row in default), row.name, escape(row.about), f"{scale.seeds}",
            f"{row.config(scale, 0, None, 'cpu').epochs:,}", table.shown_published(row.published),
            escape(row.protocol),
        )  # fmt: skip
    return shown


def _reproduce(console: Console, runs: list[Run], total: int, folder: Path, jobs: int) -> list[str]:
    """Do the runs that are left of `total`; the names of those that failed."""
    console.print(
        f"{len(runs)} of {total} runs to do, {jobs} at a time; folder {folder}", soft_wrap=True
    )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[state]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, Any] = {}
    done, failed = 0, []

    def report(run: Run, kind: str, value: Any) -> None:
        nonlocal done
        if kind == processes.PROGRESS:
            if run.name not in tasks:
                tasks[run.name] = bar.add_task(run.name, state="")
            bar.update(tasks[run.name], **_run_state(value))
            return
        if run.name in tasks:
            bar.remove_task(tasks.pop(run.name))
        if kind == processes.FAILED:
            failed.append(run.name)
            typer.echo(f"dvae-fast: {run.name} failed: {value}", err=True)
            return
        done += 1
        figures = "; ".join(
            f"{label} {'not finite' if v is None else _number(v)}"
            for label, v in zip(FIGURES.values(), value["figures"].values(), strict=True)
        )
        console.print(
            f"{run.name}: {figures}; {_duration(value['training_seconds'])} of training",
            soft_wrap=True,
        )

    try:
        with contextlib.nullcontext() if console.quiet else bar:
            processes.run_all(runs, folder, jobs, report)
    except KeyboardInterrupt:
        _fail(
            f"interrupted with {total - len(runs) + done} of {total} runs finished; all is saved, "
            "the same command goes on",
            130,
        )
    return failed


def _run_state(state: TrainProgress | EvaluationProgress) -> dict[str, Any]:
    """What the bar of a run shows."""
    if isinstance(state, TrainProgress):
        return {
            "total": state.total_examples,
            "completed": state.examples,
            "state": f"epoch {state.epoch}/{state.epochs}, {_duration(state.seconds_left)} left",
        }
    return {"total": state.total, "completed": state.examples, "state": "evaluating"}


# --- info -------------------------------------------------------------------------------------


@app.command("info")
def info_command() -> None:
    """Versions, backends, the instruction set in use, and what is missing."""
    from dvae_fast.build_info import build_info

    console = Console(highlight=False)
    info = dict(build_info())
    missing = [*info.pop("missing", []), *_missing_extras()]
    rows = [(_label(name), _shown(value)) for name, value in info.items()]
    data = os.environ.get("DVAE_FAST_DATA")
    rows.append(("data folder", data or "DVAE_FAST_DATA is not set: digits, and MNIST by download"))
    console.print(_table(rows, "This installation"))
    for sentence in missing:
        console.print(f"• {sentence}", soft_wrap=True, markup=False)
    if not missing:
        console.print("Nothing is missing.")


app.command("check")(check_command)


#: optional packages beyond the two this module needs: what imports, what installs, what for
_EXTRAS = (
    ("safetensors", "safetensors", "saving and reading runs"),
    ("sklearn", "scikit-learn", "the data set 'digits'"),
    ("matplotlib", "matplotlib", "pictures"),
    ("tensorboard", "tensorboard", "TensorBoard's events"),
    ("pooch", "pooch", "downloading MNIST"),
)


def _missing_extras() -> list[str]:
    return [
        f"The package {package}, for {purpose}: {INSTALL}"
        for module, package, purpose in _EXTRAS
        if importlib.util.find_spec(module) is None
    ]


def _label(name: str) -> str:
    return name if name == "dvae_fast" else name.replace("_", " ")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
