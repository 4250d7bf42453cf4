"""``dvae-fast train``."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import torch
import typer

from dvae_fast._checks import check_device, check_size
from dvae_fast._text import format_duration, format_number
from dvae_fast.cli.console import (
    busy_hint,
    fail,
    listed,
    one_line_errors,
    print_warnings,
    two_columns,
    wrong_options,
)
from dvae_fast.cli.evaluate import evaluate, load_data_of
from dvae_fast.cli.options import given_values, shown, with_options
from dvae_fast.cli.outlet import new_console, progress_bar, say
from dvae_fast.cli.pictures import run_pictures
from dvae_fast.cli.results import GREY, Results, evaluation_rows
from dvae_fast.corruptions import Identity
from dvae_fast.data import BINARISATIONS, DATASETS, describe
from dvae_fast.distributed import World, broadcast_object, is_main_process, join, on_main
from dvae_fast.files import CHECKPOINT, CheckpointError, write_json
from dvae_fast.models import MODELS
from dvae_fast.models.config import OUTPUT
from dvae_fast.objectives import Objective
from dvae_fast.training import (
    METRICS,
    TrainConfig,
    default_config,
    load_config,
    load_run,
    train,
)
from dvae_fast.training import Progress as TrainProgress
from dvae_fast.training.config import no_data
from dvae_fast.training.loop import check_world, cpu_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

__all__ = ["RUNS", "train_command"]

RUNS = Path("runs")
#: between two lines of a long epoch, where the output is no terminal
_LINE_SECONDS = 60.0


def _new_run_dir(config: TrainConfig) -> Path:
    stem = f"{config.model}-{config.data_name}-{datetime.now():%Y%m%d-%H%M%S}"
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


def _resolve(values: dict[str, Any], resume: bool) -> None:
    """`data` where it lies, for a run that is resumed on a path; new ones are looked at."""
    data = values.get("data")
    if resume and data is not None and data not in DATASETS:
        path = Path(data).expanduser()
        if not path.exists():
            raise ValueError(no_data(data))
        values["data"] = str(path.resolve())


def _train_command(
    run_dir: Annotated[
        Path | None,
        shown(OUTPUT, "Where the run's files go. Default: runs/<model>-<data>-<date>-<time>."),
    ] = None,
    resume: Annotated[
        bool, shown(OUTPUT, "Go on with the run in --run-dir, or the latest of runs/.", "--resume")
    ] = False,
    evaluate_k: Annotated[
        int, shown(OUTPUT, "Importance samples for the test set's log-likelihood; 0: none.")
    ] = 5000,
    no_tensorboard: Annotated[
        bool, shown(OUTPUT, "Write no TensorBoard events.", "--no-tensorboard")
    ] = False,
    quiet: Annotated[bool, shown(OUTPUT, "Print errors only.", "--quiet", "-q")] = False,
    **options: Any,
) -> None:
    """Train a model; with no options, a DIWAE on scikit-learn's digits.

    Leaves a folder with the model, checkpoints to resume from, metrics.json and pictures.
    """
    with one_line_errors():
        with wrong_options():
            values = given_values(TrainConfig, options)
            _resolve(values, resume)
            check_size("evaluate-k", evaluate_k, 0, 2**32)  # before the training, not after it
            if resume:
                run_dir = run_dir or _latest_run_dir()
                if values.get("device") == "cpu":
                    values.setdefault("cuda_graph", False)
                config = TrainConfig.from_dict(load_config(run_dir).to_dict() | values)
            else:
                config = default_config(**values)
            check_device("device", config.device)
        console = new_console(quiet=quiet or not is_main_process())
        if config.device == "cpu" and (hint := busy_hint(config.threads)):
            console.print(f"Hint: {hint}.", soft_wrap=True, markup=False)
        folder, metrics = _train_together(
            console, config, run_dir, resume=resume, tensorboard=not no_tensorboard
        )
        if not is_main_process():
            return
        rows = [
            ("best epoch", f"{metrics['best']['epoch']} of {config.epochs}"),
            ("validation bound", f"{format_number(metrics['best']['valid_bound'])} nats"),
            ("test bound", f"{format_number(metrics['test_bound'])} nats"),
        ]
        if "learnt_level" in metrics:
            learnt = f"{metrics['learnt_level']:.4g}, from {config.level:g}"
            rows.append((f"{config.corruption} level", learnt))
        pictures = _pictures(console, config, folder, metrics)
        try:
            if evaluate_k:
                rows += evaluation_rows(_evaluate(console, config, folder, metrics, evaluate_k))
        finally:  # what is known of the training is told, whatever becomes of the evaluation
            rows.append(("files", f"{folder}: {listed([METRICS, *pictures])}, …"))
            console.print()
            console.print(two_columns(rows, f"{config.model} on {config.data_name}"))
        if evaluate_k:
            print_warnings(console, metrics["evaluation"])


def _pictures(
    console: Console, config: TrainConfig, folder: Path, metrics: dict[str, Any]
) -> list[str]:
    """Those of the run; they can be done without where the disk is full."""
    try:
        return run_pictures(console, config, folder, metrics)
    except CheckpointError as error:
        say(f"dvae-fast: warning: no pictures: {error}", error=True)
        return []


def _evaluate(
    console: Console, config: TrainConfig, folder: Path, metrics: dict[str, Any], k: int
) -> dict[str, Any]:
    """The report of the best model's evaluation, kept also in `metrics`."""
    results = Results(folder)
    with cpu_threads(config.threads), results.locked():
        saved, data = load_run(folder)[1], load_data_of(config)
        try:
            report, estimate = evaluate(
                console, config, data, saved, results, _this_process(config.device), k=k
            )
        except KeyboardInterrupt:
            hint = _evaluate_hint(folder)
            fail(f"interrupted after training; to evaluate the model: {hint}", 130)
        metrics["evaluation"] = report
        try:
            results.keep(console, config, data, saved.model, report, estimate)
        finally:
            write_json(folder / METRICS, metrics)
    return report


train_command = with_options(_train_command, TrainConfig, "model", "data")


def _this_process(device: str) -> World:
    """This process, whatever others have trained with it."""
    return World(0, 1, 0, torch.device(device))


def _evaluate_hint(folder: Path) -> str:
    return f"dvae-fast evaluate {shlex.quote(str(folder))}"


def _train_together(
    console: Console, config: TrainConfig, run_dir: Path | None, *, resume: bool, tensorboard: bool
) -> tuple[Path, dict[str, Any]]:
    """Train in the world this process belongs to: the folder, and what training returns."""
    with contextlib.ExitStack() as stack:
        with wrong_options(shared=False):  # each process has an environment of its own
            world = stack.enter_context(join(config.device))
        with wrong_options():
            check_world(config, world)
        stack.enter_context(one_line_errors())  # told while the others are still there
        claimed = _new_run_dir(config) if run_dir is None and world.is_main else run_dir
        folder = broadcast_object(claimed, world)
        assert folder is not None
        if config.context is not None:
            with wrong_options():
                config.context_size_of(config.load_data())
        try:
            metrics = _train(
                console, config, folder, resume=resume, tensorboard=tensorboard,
                on_start=lambda: _announce(console, config, folder, world, resume),
            )  # fmt: skip
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
            message = f"trained, then interrupted; to evaluate the model: {_evaluate_hint(folder)}"
            _stop(message, metrics["signal"], world)
    return folder, metrics


def _stop(message: str, signal: int, world: World) -> NoReturn:
    # torchrun ends all processes when the first fails: not before the message is out.
    on_main(lambda: say(f"dvae-fast: {message}", error=True), world)
    raise typer.Exit(128 + signal)


def _announce(
    console: Console, config: TrainConfig, folder: Path, world: World, resume: bool
) -> None:
    way = BINARISATIONS[config.binarise]
    label = config.kind.label if config.is_own and way.grey else way.label
    if config.is_own:
        console.print(describe(config.load_data()), soft_wrap=True, markup=False)
    parts = [label, f"{config.likelihood} likelihood"]
    for name in ("encoder", "covariance"):
        if getattr(config, name) != getattr(TrainConfig, name):
            parts.append(f"{getattr(config, name)} {name}")
    if config.context is not None:
        parts.append(f"given {config.context}")
    if config.corruption != Identity.kind:
        how = " by pixel" * config.per_pixel + ", learnt" * (config.gradient is not None)
        parts.append(f"{config.corruption} {config.level:g}{how}, M = {config.copies}")
    elif config.copies > 1:
        parts.append(f"M = {config.copies}")
    parts.append(f"K = {config.samples}")
    if world.size > 1:
        parts.append(f"{world.size} processes")
    objective = config.make_objective()
    if objective != Objective(MODELS[config.model].defaults["objective"]):
        parts.append(f"objective {objective}")
    console.print(
        f"{'Resuming' if resume else 'Training'} {config.model} on {config.data_name} "
        f"({', '.join(parts)}); run folder {folder}",
        soft_wrap=True,
        markup=False,
    )
    if config.is_grey_bernoulli:
        console.print(f"Warning: {GREY}", soft_wrap=True, markup=False)


def _train(
    console: Console,
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool,
    tensorboard: bool,
    on_start: Callable[[], None],
) -> dict[str, Any]:
    bar = progress_bar(
        console,
        "epoch {task.fields[epoch]}",
        "{task.percentage:>3.0f} %",
        "bound {task.fields[bound]} nats",
        "{task.fields[rate]} examples/s",
        "{task.fields[left]} left",
        auto_refresh=False,
    )
    task = bar.add_task("", epoch=f"1/{config.epochs}", bound="–", rate="–", left="–:––", total=1)
    every, last_line = max(1, config.epochs // 10), time.monotonic()

    def on_progress(state: TrainProgress) -> None:
        fields: dict[str, Any] = {
            "epoch": f"{state.epoch}/{state.epochs}",
            "rate": f"{state.examples_per_second:,.0f}",
            "left": format_duration(state.seconds_left),
        }
        if math.isfinite(state.bound):
            fields["bound"] = format_number(state.bound)
        bar.update(
            task, completed=state.examples, total=state.total_examples, refresh=True, **fields
        )
        nonlocal last_line
        if not console.is_terminal and time.monotonic() > last_line + _LINE_SECONDS:
            last_line = time.monotonic()
            shown = f", bound {fields['bound']} nats" if "bound" in fields else ""
            console.print(
                f"in epoch {fields['epoch']}{shown}, {fields['left']} left", soft_wrap=True
            )

    def on_epoch(record: dict[str, float]) -> None:
        nonlocal last_line
        last_line, epoch = time.monotonic(), int(record["epoch"])
        if epoch % every == 0 or epoch in (1, config.epochs):
            console.print(
                f"epoch {epoch:>{len(str(config.epochs))}}/{config.epochs}   "
                f"bound: train {format_number(record['train_bound'])}, "
                f"valid {format_number(record['valid_bound'])} nats   "
                f"{record['examples_per_second']:,.0f} examples/s",
                soft_wrap=True,
            )

    quiet = console.quiet
    with contextlib.nullcontext() if quiet else bar:
        return train(
            config,
            folder,
            resume=resume,
            tensorboard=tensorboard,
            on_start=None if quiet else on_start,
            on_progress=None if quiet else on_progress,
            on_epoch=None if quiet else on_epoch,
        )
