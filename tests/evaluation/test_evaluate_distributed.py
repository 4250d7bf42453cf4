"""Several processes give the numbers of one; a process that ends ends the evaluation."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import evaluate_worker as worker
import numpy as np
import pytest
import torch.distributed as dist
from command_line import no_pictures, ok
from ranks import torchrun

from dvae_fast.evaluation import LikelihoodEstimate, estimate_log_likelihood
from dvae_fast.evaluation.partial import PartialResults
from dvae_fast.evaluation.sharing import divide

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
]

WORKER = str(Path(worker.__file__))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that two ranks did, one part after the other; rank 1 ends amid the last."""
    path = tmp_path_factory.mktemp("two")
    run = str(path / "a run")
    train = ["train", "--epochs", "1", "--hidden-sizes", "8", "--latent-size", "2", "-q",
             "--no-tensorboard", "--evaluate-k", "0", "--run-dir", run]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        no_pictures(patch)
        ok(*train)
        ok("evaluate", run, "--k", "30", "--limit", "31")
    (path / "a run" / "evaluation.json").rename(path / "alone.json")
    code, output, errors = torchrun(WORKER, str(path), run, parts=4)
    (path / "launcher.json").write_text(json.dumps([code, output, errors]))
    assert (path / "told").exists(), errors
    return path


@functools.cache
def _alone(case: str) -> LikelihoodEstimate:
    n, options = worker.CASES[case]
    return worker.evaluate(n, **{"k": worker.K, "seed": worker.SEED, **options})


@pytest.mark.parametrize("plan", worker.PLANS)
@pytest.mark.parametrize("case", worker.CASES)
def test_two_processes_are_one(case: str, plan: str, folder: Path) -> None:
    expected = _alone(case)
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


def test_a_process_that_ends_is_an_error(folder: Path) -> None:
    code, _, errors = json.loads((folder / "launcher.json").read_text())
    assert code == 1
    assert "exitcode  : 7" in errors
    told = (folder / "told").read_text()
    assert told.startswith("rank 0 of 2 lost touch with the others: one ended, or was")


def test_the_command_line(folder: Path) -> None:
    """Two processes: one prints and writes, and the numbers are those of one process."""
    printed = [json.loads((folder / f"right.{rank}.json").read_text()) for rank in range(2)]
    assert [code for code, _ in printed] == [0, 0], printed
    assert [text.count("log p(x)") for _, text in printed] == [1, 0]
    alone = json.loads((folder / "alone.json").read_text())
    together = json.loads((folder / "a run" / "evaluation.json").read_text())
    assert (alone.pop("processes"), together.pop("processes")) == (1, 2)
    for name, value in alone.items():
        if value is None or isinstance(value, (str, list)):
            assert together[name] == value
        elif name != "seconds":
            assert together[name] == pytest.approx(value, rel=1e-5), name
    assert sorted(p.name for p in (folder / "a run").glob("evaluation*")) == [
        "evaluation-test-importance-posterior-k30-first31.json",
        "evaluation-test-importance-posterior-k30-first31.npz", "evaluation.json",
        "evaluation.npz", "evaluation_bounds.png", "evaluation_ess.png", "evaluation_worst.png",
    ]  # fmt: skip
    wrong = [json.loads((folder / f"wrong.{rank}.json").read_text()) for rank in range(2)]
    assert all(code != 0 for code, _ in wrong)
    message = "method must be importance for several processes, got ais"
    assert [text.count(message) for _, text in wrong] == [1, 0]


def test_a_world_of_one_divides_nothing() -> None:
    part, parts, share = divide(None, 5)
    assert (part, parts, share.rank, share.size) == (0, 1, 0, 1)
