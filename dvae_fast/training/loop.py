"""`train`: the loop over epochs, and the run folder that it leaves."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dvae_fast._checks import check_device
from dvae_fast.corruptions import Learnable
from dvae_fast.distributed import World, broadcast_object, join, on_main
from dvae_fast.files import CHECKPOINT, CheckpointError, write_json
from dvae_fast.training import stopping
from dvae_fast.training.board import Board
from dvae_fast.training.config import CONFIG, TrainConfig
from dvae_fast.training.run import Run
from dvae_fast.training.stopping import Pace, Signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dvae_fast.data import Dataset

__all__ = ["METRICS", "Progress", "check_world", "cpu_threads", "train"]

METRICS = "metrics.json"
_CHECKPOINT_SECONDS = 30.0


def check_world(config: TrainConfig, world: World) -> None:
    """Raise ValueError if the run cannot be made by that many processes."""
    if config.cuda_graph and world.size > 1:
        raise ValueError(
            f"cuda_graph must be off in a run of several processes; there are {world.size}"
        )


# --- progress and pictures --------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        epoch, epochs: the epoch in progress, from 1, and how many there are.
        examples, total_examples: read so far and in the whole run, all epochs together.
        bound: mean over this epoch so far, in nats per example.
        examples_per_second: of training alone.
        seconds_left: validation included.
    """

    epoch: int
    epochs: int
    examples: int
    total_examples: int
    bound: float
    examples_per_second: float
    seconds_left: float


@contextlib.contextmanager
def cpu_threads(number: int | None) -> Iterator[None]:
    """Torch's number of CPU threads within the block; None leaves it as it is."""
    old = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(old)


def train(
    config: TrainConfig,
    run_dir: str | Path,
    *,
    resume: bool = False,
    tensorboard: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
) -> dict[str, Any]:
    """Train a model and leave a run folder.

    SIGINT, SIGTERM, and a KeyboardInterrupt raised by a callback end the step in progress, save,
    and return; a second signal interrupts at once, without saving. Of several processes (see
    `dvae_fast.distributed.join`) all stop at the same step, a moment later.

    Args:
        config: what to train.
        run_dir: the folder; made if it is not there.
        resume: go on from the folder's checkpoint. `config` must be the run's, but for ``epochs``
            (to train longer), ``threads``, ``device`` and ``cuda_graph``.
        tensorboard: write its events, if it is installed.
        on_progress: called a few times a second, on rank 0 alone.
        on_epoch: called after each epoch with its line of ``history``, on rank 0 alone.
        checkpoint_seconds: how often to save; always at the start, the end and when stopped.

    Returns:
        What ``metrics.json`` holds: ``status`` ("finished" or "interrupted"), ``config``,
        ``versions``, ``history`` (of each epoch: bounds, mean and largest norm of the gradients,
        time) and ``best``, bounds in nats per example, and, if finished,
        ``test_bound`` of the best model, and the mean of its corruption's levels as
        ``learnt_level``, if learnt; if a signal came, even too late to interrupt, its number as
        ``signal``. The same on every rank.

    Raises:
        ValueError: if the folder holds a run and `resume` is False, or holds another than
            `config` says; if the device is not there, or torchrun's environment is not whole;
            for ``cuda_graph`` with several processes.
        DistributedError: if another process ends or is silent for too long.
        NonFiniteError: if a bound becomes NaN or infinite; the last good checkpoint is kept.
        CheckpointError: if a file cannot be written or read; earlier ones stay intact.
        DataError, MissingExtraError: if the data or safetensors cannot be had.
    """
    check_device("device", config.device)
    folder = Path(run_dir)
    with join(config.device) as world:
        check_world(config, world)
        on_main(lambda: _check_folder(folder, resume), world)
        data = _load_data(config, world)
        with cpu_threads(config.threads), Signals() as signals:
            run = Run(config, folder, data, world)
            if resume:
                run.restore()
            on_main(lambda: write_json(folder / CONFIG, config.to_dict()), world)
            run.save()  # that the folder can be written shows before the work, not after
            board = Board(folder, tensorboard and world.is_main, run.epoch)
            pace = Pace(world, signals)
            try:
                _loop(run, board, pace, on_progress, on_epoch, checkpoint_seconds)
                finished = run.epoch >= config.epochs
                run.save()
                metrics = run.metrics("finished" if finished else "interrupted")
                if finished:
                    run.model.load_state_dict(run.best)
                    if isinstance(run.model.corruption, Learnable):
                        metrics["learnt_level"] = run.model.corruption.level.detach().mean().item()
                    metrics["test_bound"] = run.bound("test", run.test_seed)
                    board.pictures(run.model, data, run.best_epoch, last=True)
                pace.agree()
                if pace.stop is not None:
                    metrics["signal"] = pace.stop
                on_main(lambda: write_json(folder / METRICS, metrics), world)
                return broadcast_object(metrics, world)  # the times are rank 0's
            finally:
                board.close()


def _check_folder(folder: Path, resume: bool) -> None:
    if resume and not (folder / CHECKPOINT).is_file():
        raise CheckpointError(f"{folder} holds no {CHECKPOINT} to resume from")
    if not resume and (folder / CHECKPOINT).exists():
        raise ValueError(f"run_dir must not hold a run already, unless it is resumed; got {folder}")


def _load_data(config: TrainConfig, world: World) -> Dataset:
    """Rank 0 first, so that what must be downloaded is downloaded once."""
    loaded: list[Dataset] = []
    on_main(lambda: loaded.append(config.load_data()), world)
    return loaded[0] if world.is_main else config.load_data()


def _loop(
    run: Run,
    board: Board,
    pace: Pace,
    on_progress: Callable[[Progress], None] | None,
    on_epoch: Callable[[dict[str, float]], None] | None,
    checkpoint_seconds: float,
) -> None:
    epochs, examples = run.config.epochs, len(run.data.train)
    start = run.epoch * examples + run.position
    began = last = time.perf_counter()
    next_report, next_save = began + stopping.REPORT_SECONDS, began + checkpoint_seconds
    trained = 0.0
    if not run.world.is_main:
        on_progress = on_epoch = None

    def report(total: float) -> None:
        done = run.epoch * examples + run.position
        wall = max(time.perf_counter() - began, 1e-9)
        new = done - start
        progress = Progress(
            epoch=min(run.epoch + 1, epochs),
            epochs=epochs,
            examples=done,
            total_examples=epochs * examples,
            bound=total / run.position if run.position else math.nan,
            examples_per_second=new / max(trained, 1e-9),
            seconds_left=(epochs * examples - done) * wall / new if new else math.inf,
        )
        pace.signals.call(on_progress, progress)

    while run.epoch < epochs and pace.stop is None:
        run.start_epoch()
        last = time.perf_counter()
        while not run.epoch_done() and pace.stop is None:
            run.step()
            now = time.perf_counter()
            run.seconds += now - last
            trained += now - last
            last = now
            reporting, saving = pace.after_step(now >= next_report, now >= next_save)
            if reporting:
                total = run.check_finite()
                waited = time.perf_counter() - now  # for the steps that a GPU still had before it
                run.seconds += waited
                trained += waited
                report(total)
                if saving:
                    run.save()
                    next_save = time.perf_counter() + checkpoint_seconds
                last = time.perf_counter()
                next_report = last + stopping.REPORT_SECONDS
        if run.epoch_done() and pace.stop is None:
            record = run.finish_epoch()
            board.epoch(record)
            board.pictures(run.model, run.data, run.epoch)
            pace.signals.call(on_epoch, record)
            pace.agree()
