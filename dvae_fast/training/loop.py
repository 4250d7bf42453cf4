"""`train`: the loop over epochs, and the run folder that it leaves."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dvae_fast._checks import check_device
from dvae_fast.corruptions import Learnable
from dvae_fast.data import Dataset
from dvae_fast.distributed import World, broadcast_object, join, on_main
from dvae_fast.files import CHECKPOINT, CheckpointError, sweep_temporaries, write_json
from dvae_fast.kept import METRICS
from dvae_fast.locking import locked
from dvae_fast.training import stopping
from dvae_fast.training.board import Board
from dvae_fast.training.checkpoint import read_checkpoint
from dvae_fast.training.config import CONFIG, OptionError, TrainConfig
from dvae_fast.training.run import Run
from dvae_fast.training.stopping import Pace, Signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["METRICS", "Progress", "check_fingerprint", "check_world", "cpu_threads", "train"]

_CHECKPOINT_SECONDS = 30.0
_LOCK = ".training.lock"


def check_world(config: TrainConfig, world: World) -> None:
    """Raise OptionError if the run cannot be made by that many processes."""
    if config.cuda_graph and world.size > 1:
        raise OptionError(
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
    data: Any = None,
    resume: bool = False,
    tensorboard: bool = True,
    on_start: Callable[[], None] | None = None,
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
        data: what is trained on, in the place of what `config` names: a `Dataset`, or whatever
            `Dataset.from_arrays` takes, torch's data sets and loaders too. Its configuration is
            ``default_config(model, data)``.
        resume: go on from the folder's checkpoint. `config` must be the run's, but for ``epochs``
            (to train longer), ``threads``, ``device`` and ``cuda_graph``.
        tensorboard: write its events, if it is installed.
        on_start: called once, before the first step, when nothing is left that could be refused; on
            rank 0 alone.
        on_progress: called a few times a second, on rank 0 alone.
        on_epoch: called after each epoch with its line of ``history``, on rank 0 alone.
        checkpoint_seconds: how often to save; always at the start, the end and when stopped. Where
            it fails in between, a warning says so, and the run goes on.

    Returns:
        What ``metrics.json`` holds: ``status`` ("finished" or "interrupted"), ``config``,
        ``versions``, ``history`` (of each epoch: bounds, mean and largest norm of the gradients,
        time) and ``best``, bounds in nats per example, and, if finished,
        ``test_bound`` of the best model, and the mean of its corruption's levels as
        ``learnt_level``, if learnt; if a signal came, even too late to interrupt, its number as
        ``signal``. The same on every rank.

    Raises:
        OptionError: a ValueError; if the folder holds a run and `resume` is False, or holds
            another than `config` says; if the data are not those that `config` was made for; for
            ``cuda_graph`` with several processes.
        ValueError: if the device is not there, or torchrun's environment is not whole.
        DistributedError: if another process ends or is silent for too long.
        NonFiniteError: if a bound becomes NaN or infinite; the last good checkpoint is kept.
        CheckpointError: if a file cannot be read, or not be written at the start or the end
            (earlier ones stay intact); if another training is under way in the folder.
        DataError, MissingExtraError: if the data or safetensors cannot be had.
    """
    check_device("device", config.device)
    folder = Path(run_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_on_cpu())
        world = stack.enter_context(join(config.device))
        check_world(config, world)
        on_main(lambda: stack.enter_context(_own(folder, resume)), world)
        saved = None
        if resume:
            saved = on_main(lambda: read_checkpoint(folder / CHECKPOINT, config), world)
        data = _load_data(config, world) if data is None else _first_of(config, data)
        check_fingerprint(config, data)
        stack.enter_context(cpu_threads(config.threads))
        signals = stack.enter_context(Signals())
        run = Run(config, folder, data, world)
        if saved is not None:
            run.restore(saved)
            del saved
        on_main(lambda: write_json(folder / CONFIG, config.to_dict()), world)
        run.save()  # that the folder can be written shows before the work, not after
        board = stack.enter_context(Board(folder, tensorboard and world.is_main, run.epoch))
        if on_start is not None and world.is_main:
            on_start()
        pace = Pace(world, signals)
        _loop(run, board, pace, on_progress, on_epoch, checkpoint_seconds)
        finished = run.epoch >= config.epochs
        run.save()
        metrics = run.metrics("finished" if finished else "interrupted")
        if finished:
            run.model.load_state_dict(run.best)
            if isinstance(run.model.corruption, Learnable):
                metrics["learnt_level"] = run.model.corruption.level.detach().mean().item()
            metrics["test_bound"] = run.bound("test", run.test_seed)
            valid = run.told.get("valid")
            board.pictures(run.model, data, run.best_epoch, context=valid, last=True)
        pace.agree()
        if pace.stop is not None:
            metrics["signal"] = pace.stop
        on_main(lambda: write_json(folder / METRICS, metrics), world)
        return broadcast_object(metrics, world)  # the times are rank 0's


def _on_cpu() -> contextlib.AbstractContextManager[object]:
    """What is made without a device is made on the CPU, whatever the default."""
    # Only where it changes something: it looks at every call.
    off = torch.get_default_device().type != "cpu"
    return torch.device("cpu") if off else contextlib.nullcontext()


@contextlib.contextmanager
def _own(folder: Path, resume: bool) -> Iterator[None]:
    """The folder, for this run alone and rid of what killed runs left in it."""
    with locked(folder / _LOCK, "another training"):
        _check_folder(folder, resume)
        sweep_temporaries(folder)
        yield


def _check_folder(folder: Path, resume: bool) -> None:
    if resume and not (folder / CHECKPOINT).is_file():
        raise CheckpointError(f"{folder} holds no {CHECKPOINT} to resume from")
    if not resume and (folder / CHECKPOINT).exists():
        raise OptionError(
            f"run_dir must not hold a run already, unless it is resumed; got {folder}"
        )


def _first_of(config: TrainConfig, data: Any) -> Dataset:
    """`data`, given in Python, as `config` wants them."""
    found: Dataset = data
    if not isinstance(data, Dataset):
        found = Dataset.from_arrays(
            data, values=config.values, binarise=config.binarise, split=config.split,
            seed=config.data_seed, name=config.data, missing=config.missing,
        )  # fmt: skip
    values = found.values if config.is_own else None
    if (values, found.binarise) != (config.values, config.binarise):
        raise OptionError(
            f"data must be those that config was made for, {config.values} with binarise "
            f"{config.binarise}; got {found.values} with {found.binarise}"
        )
    if found.missing != config.missing:
        raise OptionError(
            f"data must be those that config was made for, with missing {config.missing}; got "
            f"{found.missing}"
        )
    return config.of(found)


def check_fingerprint(config: TrainConfig, data: Dataset) -> None:
    """Raise OptionError unless the data have the values that `config` was made for."""
    if config.fingerprint is not None and data.fingerprint != config.fingerprint:
        raise OptionError(
            f"data must be those of the run, whose fingerprint is {config.fingerprint}; "
            f"{config.data} holds others, of {data.fingerprint}"
        )


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
                    _try_to_save(run)
                    next_save = time.perf_counter() + checkpoint_seconds
                last = time.perf_counter()
                next_report = last + stopping.REPORT_SECONDS
        if run.epoch_done() and pace.stop is None:
            record = run.finish_epoch()
            board.epoch(record)
            board.pictures(run.model, run.data, run.epoch, context=run.told.get("valid"))
            pace.signals.call(on_epoch, record)
            pace.agree()


def _try_to_save(run: Run) -> None:
    """A full disk may have room again by the next time; only the last one has to succeed."""
    try:
        run.save()
    except CheckpointError as error:
        if run.world.is_main:
            warnings.warn(
                f"{error}; going on, and trying again later", RuntimeWarning, stacklevel=2
            )
