"""What one of the processes of `test_distributed` runs; what came of each check is in RANK.json.

torchrun --nproc-per-node 2 distributed_worker.py FOLDER PORT PORT PORT
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from command_line import run as invoke
from ranks import meet_elsewhere, program

from dvae_fast import distributed
from dvae_fast.data import Dataset
from dvae_fast.files import CHECKPOINT, CheckpointError, load_tensors
from dvae_fast.training import NonFiniteError, TrainConfig, default_config, stopping, train
from dvae_fast.training.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# --- the helpers ------------------------------------------------------------------------------


def place(world: distributed.World, folder: Path) -> None:
    assert world.rank == int(os.environ["RANK"])
    assert (world.size, world.local_rank) == (2, world.rank)
    assert world.device == torch.device("cpu")
    assert world.is_main is (world.rank == 0) is distributed.is_main_process()
    assert dist.get_backend() == "gloo"


def gathering(world: distributed.World, folder: Path) -> None:
    """Of every dtype, lengths that differ, and lengths of 0; by rank, in order."""
    for dtype in (torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16):
        for lengths in ((3, 5), (5, 3), (0, 2), (0, 0)):
            whole = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
            expected = whole[: sum(lengths)].split(lengths)
            mine = expected[world.rank]
            parts = distributed.all_gather_tensors(mine.mT.contiguous().mT, world)  # not contiguous
            assert [p.dtype for p in parts] == [dtype] * 2
            assert all(torch.equal(p, e) for p, e in zip(parts, expected, strict=True))
    with pytest.raises(ValueError, match=r"rows of one size on every rank, got .* \(8, 12\)"):
        distributed.all_gather_tensors(torch.zeros(2, 2 + world.rank), world)
    with pytest.raises(ValueError, match="at least one dimension, got a scalar"):
        distributed.all_gather_tensors(torch.tensor(1.0), world)


def agreeing(world: distributed.World, folder: Path) -> None:
    assert distributed.any_true(world.rank == 1, world)
    assert not distributed.any_true(False, world)
    assert distributed.all_max([world.rank, -world.rank, 7], world) == [1, 0, 7]
    t = torch.tensor([1.0, 10.0], dtype=torch.float64) * (1 + world.rank)
    assert distributed.all_sum(t, world).tolist() == [3.0, 30.0]
    assert t.tolist() == [1.0 + world.rank, 10.0 + 10 * world.rank]
    told = {"rank": world.rank, "t": torch.arange(world.rank + 3)}
    got = distributed.broadcast_object(told, world)
    assert got["rank"] == 0
    assert got["t"].tolist() == [0, 1, 2]


def main_alone(world: distributed.World, folder: Path) -> None:
    """Its result and its error are everybody's."""
    calls = []

    def function() -> int:
        calls.append(world.rank)
        return 5

    assert distributed.on_main(function, world) == 5
    assert calls == [0] * world.is_main

    def wrong() -> int:
        raise KeyError("a name")

    with pytest.raises(KeyError, match="a name"):
        distributed.on_main(wrong, world)


def shares(world: distributed.World, folder: Path) -> None:
    for count in (0, 1, 2, 7, 8):
        parts = [
            distributed.share(count, distributed.World(r, 3, r, world.device)) for r in range(3)
        ]
        assert parts[0][0] == 0
        assert parts[-1][1] == count
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
        sizes = [stop - start for start, stop in parts]
        assert max(sizes) - min(sizes) <= 1


def waiting(world: distributed.World, folder: Path) -> None:
    start = time.monotonic()
    if world.is_main:
        time.sleep(0.3)
    distributed.barrier(world)
    assert time.monotonic() - start >= 0.25


def nested(world: distributed.World, folder: Path) -> None:
    """A group that is there already is used, and left."""
    with distributed.join("cpu") as again:
        assert again == world
    assert distributed.any_true(world.is_main, world)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="a GPU of its own"), distributed.join("cuda"):
            pass


HELPERS = (place, gathering, agreeing, main_alone, shares, waiting, nested)


# --- training ---------------------------------------------------------------------------------


def tiny(**options: Any) -> TrainConfig:
    """M, K, batch and sizes that all differ; shares that do, 118 and 119; a last batch of 112."""
    values = {"copies": 2, "samples": 3, "batch_size": 237, "latent_size": 4,
              "hidden_sizes": (9, 7), "epochs": 2, "seed": 11}  # fmt: skip
    return default_config(**(values | options))


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Models are made, and images read, in float64."""
    read, evaluated = Dataset.train_batch, Dataset.evaluation
    old = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "train_batch", lambda *args: read(*args).double())
        patch.setattr(Dataset, "evaluation", lambda *args: evaluated(*args).double())
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(old)


@float64()
def as_one(options: dict[str, Any], steps: int, world: distributed.World, folder: Path) -> None:
    """Two processes' gradients, parameters and bounds against one's."""
    config = tiny(**options)
    data = config.load_data()
    together, alone = runs = [Run(config, folder, data, w) for w in (world, None)]
    for run in runs:
        run.start_epoch()
    for p in alone.parameters.values():  # whose gradients are to be seen
        p.register_hook(lambda grad: None)
    for _ in range(steps):
        for run in runs:
            run.step()
        for name, p in together.parameters.items():
            reference = alone.parameters[name]
            torch.testing.assert_close(p.grad, reference.grad, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(p, reference, rtol=1e-9, atol=1e-9)
            theirs = distributed.all_gather_tensors(p.detach().flatten(), world)
            assert torch.equal(*theirs), name
        assert together.position == alone.position
        assert together.check_finite() == pytest.approx(alone.check_finite(), rel=1e-10)
    for split in ("valid", "test"):
        assert together.bound(split, 5) == pytest.approx(alone.bound(split, 5), rel=1e-10)


def steps_of_a_diwae(world: distributed.World, folder: Path) -> None:
    """A whole epoch, with its smaller last batch."""
    as_one({}, 6, world, folder)


def steps_of_a_gaussian_dvae(world: distributed.World, folder: Path) -> None:
    options = {"model": "dvae", "likelihood": "gaussian", "binarise": "none",
               "corruption": "gaussian", "batch_size": 70}  # fmt: skip
    as_one(options, 3, world, folder)


def steps_of_one_example(world: distributed.World, folder: Path) -> None:
    """Batches smaller than the world: one rank has nothing to do."""
    as_one({"model": "iwae", "copies": 1, "batch_size": 1}, 4, world, folder)


@contextlib.contextmanager
def every_step(wrapper: Callable[[Run], None]) -> Iterator[None]:
    """Call back after each step of a run."""
    real = Run.step

    def step(run: Run) -> None:
        real(run)
        wrapper(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopping, "REPORT_SECONDS", 0.0)
        patch.setattr(Run, "step", step)
        yield


def whole_run(world: distributed.World, folder: Path) -> None:
    """Rank 0 alone calls back, writes and logs. `test_distributed` compares with one process."""
    epochs: list[Any] = []
    reports: list[Any] = []
    with every_step(lambda _: None):
        metrics = train(tiny(), folder / "two", on_epoch=epochs.append, on_progress=reports.append)
    assert distributed.broadcast_object(metrics, world) == metrics
    assert metrics["versions"]["processes"] == 2
    assert len(epochs) == 2 * world.is_main
    assert len(reports) == 12 * world.is_main


def a_signal_on_one_rank(world: distributed.World, folder: Path) -> None:
    """All stop at the same step, rank 0 saves; going on ends where the straight run does."""
    steps = []

    def send(run: Run) -> None:
        steps.append(1)
        if len(steps) == 3 and not world.is_main:
            os.kill(os.getpid(), signal.SIGTERM)

    with every_step(send):
        metrics = train(tiny(), folder / "broken", tensorboard=False)
    assert (metrics["status"], metrics["signal"]) == ("interrupted", signal.SIGTERM)
    assert len(steps) == 3
    header = load_tensors(folder / "broken" / CHECKPOINT)[1]
    assert (header["epoch"], header["position"]) == (0, 3 * 237)
    metrics = train(tiny(), folder / "broken", tensorboard=False, resume=True)
    assert metrics["status"] == "finished"
    straight, broken = (load_tensors(folder / name / CHECKPOINT) for name in ("two", "broken"))
    for name, t in straight[0].items():
        assert torch.equal(t, broken[0][name]), name
    for a, b in zip(straight[1]["history"], broken[1]["history"], strict=True):
        assert a["valid_bound"] == b["valid_bound"]
        assert a["train_bound"] == pytest.approx(b["train_bound"], rel=1e-12)


def a_callback_stops_all(world: distributed.World, folder: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    metrics = train(tiny(), folder / "stopped", tensorboard=False, on_epoch=stop)
    assert (metrics["status"], metrics["signal"]) == ("interrupted", signal.SIGINT)
    assert metrics["epochs_done"] == 1


def between_agreements_nothing_is_exchanged(world: distributed.World, folder: Path) -> None:
    """Steps of no length, a report every 0.2 s: hundreds go by until they agree again."""
    pace = stopping.Pace(world, stopping.Signals())
    asked = []

    def count(values: Any, world: distributed.World) -> list[int]:
        asked.append(1)
        return distributed.all_max(values, world)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopping, "all_max", count)
        flags = [pace.after_step(world.is_main, False) for _ in range(300)]
    assert 0 < len(asked) < 30
    assert flags.count([True, False]) == len(asked)
    assert flags.count([False, False]) == 300 - len(asked)
    assert pace.stop is None


def numbers_that_are_none(world: distributed.World, folder: Path) -> None:
    """The same message everywhere, though one rank alone has met them."""

    def infinite(run: Run) -> None:
        if not world.is_main:
            run.total.fill_(float("inf"))

    def poisoned(run: Run) -> None:
        if not world.is_main:
            with torch.no_grad():
                run.parameters["decoder.output.bias"][3] = float("nan")

    for wrong, what in ((infinite, "the training bound became inf"),
                        (poisoned, "a parameter became nan")):  # fmt: skip
        where = folder / wrong.__name__
        with every_step(wrong), pytest.raises(NonFiniteError, match=what) as caught:
            train(tiny(), where, tensorboard=False, checkpoint_seconds=0.0)
        message = str(caught.value)
        assert "in epoch 1, after 237 of 1297 examples" in message
        assert distributed.broadcast_object(message, world) == message
        assert load_tensors(where / CHECKPOINT)[1]["position"] == 0


def refusals(world: distributed.World, folder: Path) -> None:
    """Found out by rank 0, raised by all."""
    with pytest.raises(ValueError, match="run_dir must not hold a run already"):
        train(tiny(), folder / "two", tensorboard=False)
    with pytest.raises(ValueError, match="samples must be as in the run to resume, 3; got 4"):
        train(tiny(samples=4), folder / "two", tensorboard=False, resume=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        train(tiny(), folder / "nowhere", tensorboard=False, resume=True)
    (folder / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write") as caught:
        train(tiny(), folder / "file" / "run", tensorboard=False)
    assert isinstance(caught.value.__cause__, distributed.DistributedError) is not world.is_main


def command_line(world: distributed.World, folder: Path) -> None:
    """One message, from rank 0, and the same exit code from both."""

    def ends(code: int, message: str, *options: str) -> None:
        command = ["train", "--latent-size", "4", "--hidden-sizes", "9,7", "--batch-size", "237",
                   "--no-tensorboard", "--evaluate-k", "0", "-q", *options]  # fmt: skip
        result = invoke(*command)
        assert result.exit_code == code, result.output
        assert (message in result.output) is world.is_main
        assert result.output.count("\n") == world.is_main

    steps = []

    def send(run: Run) -> None:
        steps.append(1)
        if len(steps) == 3 and not world.is_main:
            os.kill(os.getpid(), signal.SIGINT)

    where = str(folder / "cli")
    with every_step(send):
        ends(130, "all is saved, go on with: dvae-fast train --resume --run-dir", "--epochs", "9",
             "--run-dir", where)  # fmt: skip
    ends(2, "run_dir must not hold a run already", "--run-dir", where)
    ends(2, "samples must be >= 1, got 0", "-K", "0")
    ends(1, "cannot write", "--run-dir", str(folder / "file" / "run"))
    ends(1, "smaller learning rate", "--learning-rate", "1e30", "--run-dir", f"{where} 2")


TRAINING = (
    steps_of_a_diwae, steps_of_a_gaussian_dvae, steps_of_one_example, whole_run,
    a_signal_on_one_rank, a_callback_stops_all, between_agreements_nothing_is_exchanged,
    numbers_that_are_none, refusals, command_line,
)  # fmt: skip
CHECKS = HELPERS + TRAINING


# --- one that is silent, one that ends --------------------------------------------------------


def silent() -> str:
    """What rank 0 is told when the other says nothing for a second; and its share of threads."""
    os.environ[distributed.TIMEOUT_VARIABLE] = "1"
    del os.environ["OMP_NUM_THREADS"]
    torch.set_num_threads(6)
    message = ""
    with distributed.join("cpu") as world:
        assert torch.get_num_threads() == 3
        if world.is_main:
            with pytest.raises(distributed.DistributedError) as caught, distributed.join("cpu"):
                distributed.barrier(world)
            message = str(caught.value)
        else:
            time.sleep(2)
    assert torch.get_num_threads() == 6
    return message


def gone() -> str:
    """What rank 0 is told when the other ends amid a run."""
    del os.environ[distributed.TIMEOUT_VARIABLE]

    # torchrun, which sees the other end, must not end this one before it is told.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def end() -> None:
        with distributed.join("cpu") as world:
            if not world.is_main:
                os._exit(7)
            distributed.barrier(world)

    with pytest.raises(distributed.DistributedError) as caught:
        end()
    return str(caught.value)


def trained(folder: Path) -> str:
    """What ``python -m dvae_fast train`` prints."""
    code, printed = program(
        "train", "--latent-size", "4", "--hidden-sizes", "9,7", "--batch-size", "237",
        "--epochs", "2", "--evaluate-k", "7", "--run-dir", str(folder / "program"),
    )  # fmt: skip
    assert code == 0, printed
    return printed


def run(folder: Path, ports: Iterator[str]) -> None:
    results: dict[str, str] = {}

    def tell(name: str, result: str) -> None:
        results[name] = result
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(results))

    tell("program", trained(folder))
    meet_elsewhere(next(ports))
    with distributed.join("cpu") as world:
        for check in CHECKS:
            try:
                check(world, folder)
                tell(check.__name__, "ok")
            except BaseException:
                tell(check.__name__, traceback.format_exc())
                os._exit(1)  # the other may be waiting: what comes after makes no sense
    assert not dist.is_initialized()
    for end in (silent, gone):
        meet_elsewhere(next(ports))
        tell(end.__name__, end())


if __name__ == "__main__":
    run(Path(sys.argv[1]), iter(sys.argv[2:]))
