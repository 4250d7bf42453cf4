"""Training in several processes: what they exchange, that they train as one does, how they stop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
import torch.distributed as dist
from ranks import PLACE, torchrun

from dvae_fast.distributed import TIMEOUT_VARIABLE, World, all_gather_tensors, all_max, join
from dvae_fast.files import CHECKPOINT
from dvae_fast.models.saving import MODEL
from dvae_fast.training import METRICS, load_config, train
from dvae_fast.training.loop import check_world

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
]

WORKER = str(Path(worker.__file__))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PLACE, TIMEOUT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results and runs of both ranks. In the last check rank 1 exits."""
    path = tmp_path_factory.mktemp("two")
    (path / "launcher.json").write_text(json.dumps(torchrun(WORKER, str(path), parts=4)))
    return path


def results(folder: Path, rank: int) -> dict[str, str]:
    """The rank's result of each check, by name; empty if it exited before the first."""
    path = folder / f"{rank}.json"
    found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return found


@pytest.mark.parametrize("name", [check.__name__ for check in worker.CHECKS])
def test_two_processes(name: str, folder: Path) -> None:
    launcher = (folder / "launcher.json").read_text()
    found = [results(folder, rank).get(name, launcher) for rank in range(2)]
    assert found == ["ok", "ok"], "\n".join(found)


def test_no_rank_waits_for_one_that_hangs_or_has_exited(folder: Path) -> None:
    found = results(folder, 0)
    for name in ("silent", "gone"):
        assert found[name].startswith("rank 0 of 2 lost touch with the others: one ended, or was")
    assert f"{TIMEOUT_VARIABLE} (1 s)" in found["silent"]
    code, _, errors = json.loads((folder / "launcher.json").read_text())
    assert code == 1
    assert "exitcode  : 7" in errors


def test_two_processes_train_as_one_does(folder: Path, tmp_path: Path) -> None:
    """Within 0.002 nats: in float32, Adam turns a difference in rounding into a larger one."""
    metrics = train(worker.tiny(), tmp_path, tensorboard=False)
    two = json.loads((folder / "two" / METRICS).read_text())
    assert two["config"] == metrics["config"]
    for line, other in zip(metrics["history"], two["history"], strict=True):
        for name in ("train_bound", "valid_bound"):
            assert line[name] == pytest.approx(other[name], abs=2e-3)
    assert two["test_bound"] == pytest.approx(metrics["test_bound"], abs=2e-3)
    names = sorted(path.name.split(".out.")[0] for path in (folder / "two").iterdir())
    assert names == [CHECKPOINT, "config.json", "events", METRICS, MODEL]


def test_one_process_resumes_the_run_of_two(folder: Path) -> None:
    config = dataclasses.replace(load_config(folder / "cli"), epochs=1)
    metrics = train(config, folder / "cli", resume=True, tensorboard=False)
    assert (metrics["status"], metrics["epochs_done"]) == ("finished", 1)
    assert metrics["versions"]["processes"] == 1


def test_cuda_graphs_are_refused_with_several_processes() -> None:
    config = worker.tiny(device="cuda", cuda_graph=True)
    check_world(config, World(0, 1, 0, torch.device("cuda")))
    with pytest.raises(ValueError, match=r"cuda_graph must be off .* processes; there are 2"):
        check_world(config, World(0, 2, 0, torch.device("cuda")))


def test_torchrun_trains_and_evaluates(folder: Path) -> None:
    printed = results(folder, 0)["program"]
    for text in ("2 processes); run folder", "epoch 2/2", "test bound"):
        assert printed.count(text) == 1
    rows = [line.strip(" │") for line in printed.splitlines()]
    assert sum(row.startswith("log p(x)") for row in rows) == 1, printed
    assert results(folder, 1)["program"] == ""
    run = folder / "program"
    metrics = json.loads((run / METRICS).read_text())
    assert (metrics["status"], metrics["versions"]["processes"]) == ("finished", 2)
    assert metrics["evaluation"]["k"] == 7
    assert len(list(run.glob("events.*"))) == 1


# --- the environment --------------------------------------------------------------------------


def test_outside_torchrun_the_world_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (None, "1"):
        if size is not None:
            monkeypatch.setenv("RANK", "0")
            monkeypatch.setenv("WORLD_SIZE", size)
        with join("cpu") as world:
            assert world == World(0, 1, 0, torch.device("cpu"))
            assert world.is_main
            assert not dist.is_initialized()
            t = torch.ones(3)
            assert all_gather_tensors(t, world) == [t]
            assert all_max([4, 5], world) == [4, 5]


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1",
         "MASTER_PORT": "1"}  # fmt: skip


@pytest.mark.parametrize(
    "changes, device, message",
    [
        ({"RANK": None}, "cpu", "must hold RANK and WORLD_SIZE, .*; it holds WORLD_SIZE alone"),
        ({"WORLD_SIZE": None}, "cpu", "it holds RANK alone"),
        ({"RANK": "2"}, "cpu", "RANK must be an integer from 0 to 1 in the environment; got '2'"),
        ({"RANK": "-1"}, "cpu", "RANK must be an integer from 0 to 1 .* got '-1'"),
        ({"WORLD_SIZE": "two"}, "cpu", "WORLD_SIZE must be an integer >= 1 .* got 'two'"),
        ({"MASTER_ADDR": None}, "cpu", "MASTER_ADDR must be in the environment"),
        ({"MASTER_PORT": None}, "cpu", "MASTER_PORT must be in the environment"),
        ({"LOCAL_RANK": "x"}, "cpu", "LOCAL_RANK must be an integer >= 0"),
        ({"LOCAL_RANK": None}, "cuda", "LOCAL_RANK must be an integer >= 0 .* it is not set"),
        ({}, "cuda:0", "device must be cuda, without a number, .* got cuda:0"),
        ({"LOCAL_RANK": "99"}, "cuda", "a GPU of its own: LOCAL_RANK is 99, and torch sees"),
        ({TIMEOUT_VARIABLE: "0"}, "cpu", f"{TIMEOUT_VARIABLE} must be seconds > 0 .* got '0'"),
        ({TIMEOUT_VARIABLE: "soon"}, "cpu", f"{TIMEOUT_VARIABLE} must be seconds > 0"),
    ],
)  # fmt: skip
def test_a_wrong_environment_is_named(
    changes: dict[str, str | None], device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (WHOLE | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message), join(device):
        pass
    assert not dist.is_initialized()
