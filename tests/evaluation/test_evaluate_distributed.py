"""Several processes give the numbers of one; a process that ends ends the evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import evaluate_worker as worker
import numpy as np
import pytest
import torch.distributed as dist
from ranks import LIMIT, environment

from dvae_fast.evaluation import estimate_log_likelihood
from dvae_fast.evaluation.partial import PartialResults
from dvae_fast.evaluation.sharing import divide

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

WORKER = str(Path(worker.__file__))


def torchrun(*command: str, **more: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *command],
        env=environment(**more), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


def cli(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvae_fast", *arguments],
        env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two")
    done = torchrun(WORKER, str(path))
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("plan", worker.PLANS)
@pytest.mark.parametrize("case", worker.CASES)
def test_two_processes_are_one(case: str, plan: str, folder: Path) -> None:
    n, options = worker.CASES[case]
    expected = estimate_log_likelihood(
        worker.model(), worker.data(n), **{"k": worker.K, "seed": worker.SEED, **options}
    )
    for rank in range(2):
        found = np.load(folder / f"{case}, {plan}.{rank}.npz")
        for field in worker.FIELDS:
            np.testing.assert_allclose(
                found[field], getattr(expected, field).numpy(), rtol=1e-9, atol=1e-9, err_msg=field
            )


def test_each_does_its_share_and_keeps_it(folder: Path) -> None:
    totals = [int((folder / f"total.{rank}").read_text()) for rank in range(2)]
    assert sorted(totals) == [5, 6]
    files = sorted(folder.glob("partial.npz*"))
    assert [f.name for f in files] == ["partial.npz.0", "partial.npz.1"]
    settings = json.loads(str(np.load(files[0])["_settings"]))
    assert bool(PartialResults(worker.N, folder / "partial.npz", settings).done.all())
    # One process takes up what two have done.
    again = estimate_log_likelihood(
        worker.model(), worker.data(worker.N), worker.K, partial=folder / "partial.npz",
        progress=lambda _: pytest.fail("evaluated again"),
    )  # fmt: skip
    found = np.load(folder / "examples, cpu.0.npz")
    np.testing.assert_allclose(found["log_likelihood"], again.log_likelihood)


def test_a_process_that_ends_is_an_error(tmp_path: Path) -> None:
    done = torchrun(WORKER, str(tmp_path), "end", DVAE_FAST_TIMEOUT="20")
    assert done.returncode == 1
    assert "exitcode  : 7" in done.stderr
    told = (tmp_path / "told").read_text()
    assert told.startswith("rank 0 of 2 lost touch with the others: one ended, or was")


def test_the_command_line(tmp_path: Path) -> None:
    """Two processes: one prints and writes, and the numbers are those of one process."""
    run = tmp_path / "a run"
    options = [
        "--epochs",
        "1",
        "--hidden-sizes",
        "8",
        "--latent-size",
        "2",
        "--no-tensorboard",
        "-q",
    ]
    assert cli(["train", *options, "--evaluate-k", "0", "--run-dir", str(run)]).returncode == 0
    evaluate = ["evaluate", str(run), "--k", "30", "--limit", "31"]
    one = cli(evaluate)
    alone = json.loads((run / "evaluation.json").read_text())
    two = torchrun("-m", "dvae_fast", *evaluate)
    together = json.loads((run / "evaluation.json").read_text())
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert two.stdout.count("log p(x)") == 1
    assert (alone.pop("processes"), together.pop("processes")) == (1, 2)
    for name, value in alone.items():
        if isinstance(value, (str, list)):
            assert together[name] == value
        elif name != "seconds":
            assert together[name] == pytest.approx(value, rel=1e-5), name
    assert sorted(p.name for p in run.glob("evaluation*")) == [
        "evaluation-test-importance-posterior-k30-first31.json",
        "evaluation-test-importance-posterior-k30-first31.npz", "evaluation.json",
        "evaluation.npz", "evaluation_bounds.png", "evaluation_ess.png", "evaluation_worst.png",
    ]  # fmt: skip
    wrong = torchrun("-m", "dvae_fast", *evaluate, "--method", "ais")
    assert wrong.returncode != 0
    assert wrong.stderr.count("method must be importance for several processes, got ais") == 1


def test_a_world_of_one_divides_nothing() -> None:
    part, parts, share = divide(None, 5)
    assert (part, parts, share.rank, share.size) == (0, 1, 0, 1)
