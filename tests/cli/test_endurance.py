"""What runs go through at night scale: kills, damaged files, poisoned data, thousands of steps.

`DVAE_FAST_ENDURANCE=0.1` takes a tenth of the kills, damages and steps.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dvae_fast import cli
from dvae_fast.corruptions import Masking
from dvae_fast.evaluation import PROPOSALS, estimate_log_likelihood, partial
from dvae_fast.evaluation.partial import PARTIAL
from dvae_fast.files import CHECKPOINT, load_tensors
from dvae_fast.models import MODELS, make_model
from dvae_fast.models.saving import MODEL
from dvae_fast.training import CONFIG, METRICS, default_config, stopping, train

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of what is damaged
]

_SHARE = float(os.environ.get("DVAE_FAST_ENDURANCE", "1"))
KILLS, EVALUATION_KILLS, DAMAGES, STEPS = (
    max(1, round(_SHARE * n)) for n in (85, 20, 2000, 11_700)
)


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which say nothing here; saved as often as can be."""
    monkeypatch.setattr(cli.train, "run_pictures", lambda *_: [])
    monkeypatch.setattr(cli.results, "evaluation_pictures", lambda *_: None)
    monkeypatch.setattr(stopping, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(partial, "_EVERY", 0.0)


def killed_after(seconds: float, work: Callable[[], None]) -> bool:
    """Do `work` in a fork of this process, killed when it takes longer; whether it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other threads, which the child does not need
        process = os.fork()
    if not process:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            assert status == 0
            return False
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def until_done(kills: int, longest: float, work: Callable[[], None]) -> int:
    """`work` again and again, killed that often at most, at any moment; how often it was."""
    draw = random.Random(0)
    for done in range(kills):
        if not killed_after(draw.uniform(0, longest), work):
            return done
    assert not killed_after(300, work)
    return kills


# --- kills ------------------------------------------------------------------------------------

TINY: dict[str, Any] = {"copies": 2, "samples": 3, "batch_size": 100, "latent_size": 4,
                        "hidden_sizes": (9,), "seed": 3, "threads": 1}  # fmt: skip


def _left(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.name.startswith(".")}


def test_a_training_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    config = default_config(epochs=15, **TINY)
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    began = time.monotonic()
    whole = train(config, straight, tensorboard=False, checkpoint_seconds=0.0)
    took = time.monotonic() - began

    def go_on() -> None:
        resume = (folder / CHECKPOINT).is_file()
        train(config, folder, resume=resume, tensorboard=False, checkpoint_seconds=0.0)

    # Of about half of the work; the rest is done at last. Or not quite, on a machine in use.
    assert until_done(KILLS, took / KILLS + 0.02, go_on) > KILLS / 4
    metrics = json.loads((folder / METRICS).read_text())
    assert metrics["status"] == "finished"
    for name in ("test_bound", "best"):
        assert metrics[name] == whole[name]
    (ours, _), (theirs, _) = load_tensors(folder / CHECKPOINT), load_tensors(straight / CHECKPOINT)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(t, theirs[name]) for name, t in ours.items())
    assert (folder / MODEL).read_bytes() == (straight / MODEL).read_bytes()
    assert _left(folder) == set()


def _command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "it"
    train(default_config(epochs=2, **TINY), folder, tensorboard=False)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(trained, tmp_path / "r"))


EVALUATE = ("--k", "200", "--batch-size", "5", "--quiet")


def numbers(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "evaluation.npz") as file:
        return dict(file)


@pytest.mark.parametrize("options", [(), ("--tolerance", "0.05", "--proposal", "mixture")])
def test_an_evaluation_that_is_killed_ends_as_one_that_is_not(
    options: tuple[str, ...], run: Path, tmp_path: Path
) -> None:
    def evaluate(out: Path, *more: str) -> None:
        result = _command("evaluate", run, *EVALUATE, *options, "--out", out, *more)
        assert result.exit_code == 0, result.output

    straight, folder = tmp_path / "straight", tmp_path / "killed"
    began = time.monotonic()
    evaluate(straight)
    longest = (time.monotonic() - began) / EVALUATION_KILLS + 0.05
    until_done(EVALUATION_KILLS, longest, lambda: evaluate(folder, "--resume"))
    expected, found = numbers(straight), numbers(folder)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        assert np.array_equal(values, found[name], equal_nan=values.dtype.kind == "f"), name
    assert not (folder / PARTIAL).exists()
    assert _left(folder) == set()


# --- damage -----------------------------------------------------------------------------------


def damaged(data: bytes, draw: random.Random) -> bytes:
    """In one of the ways in which disks, networks and editors damage files."""
    n = len(data)
    at, size = draw.randrange(n), draw.choice([1, 2, 7, 64, 512])
    how = draw.choice(["bit", "bytes", "zeros", "cut", "out", "twice", "more", "start", "text"])
    if how == "bit":
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if how in ("bytes", "zeros"):
        other = draw.randbytes(size) if how == "bytes" else bytes(size)
        return (data[:at] + other + data[at + size :])[:n]
    if how == "text":  # another digit, say
        return data.replace(draw.choice([b"1", b"0", b"e", b'"', b":"]), b"7", draw.randrange(1, 4))
    return {
        "cut": data[:at],
        "out": data[:at] + data[at + size :],
        "twice": data[: at + size] + data[at:],
        "more": data + draw.randbytes(size),
        "start": draw.randbytes(8) + data[8:],
    }[how]


@pytest.mark.parametrize("name", [CONFIG, MODEL, CHECKPOINT, PARTIAL, METRICS])
def test_damage_is_told_in_one_line_or_changes_nothing(name: str, run: Path) -> None:
    assert _command("evaluate", run, "--limit", "6", *EVALUATE).exit_code == 0
    expected = numbers(run)
    more = estimate_with_partial(run)
    draw = random.Random(name)
    sound = (run / name).read_bytes()
    files = {file.name: file.read_bytes() for file in run.iterdir()}
    for i in range(DAMAGES // 5):
        for file, content in files.items():
            (run / file).write_bytes(content)
        wrong = damaged(sound, draw)
        (run / name).write_bytes(wrong)
        if name == CHECKPOINT:
            result = _command("train", "--resume", "--run-dir", run, "--no-tensorboard",
                              "--evaluate-k", "0")  # fmt: skip
        else:
            result = _command("evaluate", run, "--limit", "6", *EVALUATE, "--resume")
        what = f"{i}: {result.output}"
        if result.exit_code == 0:
            if name not in (CHECKPOINT, CONFIG, METRICS):
                assert same(numbers(run), expected), what
            continue
        assert result.exit_code in (1, 2), what
        assert isinstance(result.exception, SystemExit), f"{what}{result.exception!r}"
        said = [line for line in result.output.splitlines() if not line.startswith("Resuming")]
        assert len([line for line in said if "warning:" not in line]) == 1, what
    assert more


def estimate_with_partial(run: Path) -> bool:
    """Leave half of the evaluation in the run's folder."""

    class StopError(Exception):
        pass

    def stop(_: object) -> None:
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.evaluate._Bar, "advance", lambda *_: stop(None))
        result = _command("evaluate", run, "--limit", "6", *EVALUATE)
    assert isinstance(result.exception, StopError)
    return (run / PARTIAL).is_file()


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(values, found[name], equal_nan=values.dtype.kind == "f")
        for name, values in expected.items()
    )


# --- poisoned neighbours ----------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("name", MODELS)
def test_an_example_that_is_nan_leaves_the_others_to_the_last_bit(
    name: str, likelihood: str
) -> None:
    options: dict[str, Any] = {"samples": 3}
    if MODELS[name].denoising:
        options |= {"corruption": Masking(0.3), "copies": 2}
    torch.manual_seed(0)
    model = make_model(name, 33, 3, (17,), likelihood=likelihood, **options)
    x = torch.rand(13, 33).round()
    for bad in (0, 5, 12):
        wrong = x.clone()
        wrong[bad, draw_pixel(bad)] = torch.nan
        others = [i for i in range(13) if i != bad]
        assert torch.equal(model.bound(wrong, 7)[others], model.bound(x, 7)[others])
        proposals = ("posterior",) if name == "bernoulli" else PROPOSALS
        for proposal in proposals:
            one, two = (
                estimate_log_likelihood(
                    model, data, 61, proposal=proposal, corruption=Masking(0.3), copies=3, seed=1,
                    batch_size=5, chunk=17,
                )
                for data in (wrong, x)
            )  # fmt: skip
            for field in ("log_likelihood", "standard_error", "ess", "elbo", "pareto_k", "curve"):
                a, b = getattr(one, field)[others], getattr(two, field)[others]
                assert torch.equal(a.nan_to_num(9.5), b.nan_to_num(9.5)), field
            assert one.non_finite == 1


def draw_pixel(seed: int) -> int:
    return random.Random(seed).randrange(33)


# --- memory -----------------------------------------------------------------------------------


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_memory_is_flat(tmp_path: Path) -> None:
    """Over the last three quarters of all steps, but for what a history of epochs holds."""
    epochs = max(8, STEPS // 13)
    sizes: list[int] = []
    config = default_config(epochs=epochs, **TINY)
    train(config, tmp_path / "r", tensorboard=False, on_epoch=lambda _: sizes.append(_resident()))
    assert len(sizes) == epochs
    quarter = len(sizes) // 4
    assert max(sizes[-quarter:]) - max(sizes[quarter : 2 * quarter]) < 16 << 20
