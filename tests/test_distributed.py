"""Several processes: what they tell one another, and that none waits for one that is gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
import torch.distributed as dist

from dvae_fast.distributed import TIMEOUT_VARIABLE, World, all_gather_tensors, all_max, join

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

ROOT = Path(__file__).resolve().parent.parent
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LIMIT = 100.0  # seconds that processes may take on a loaded machine


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*_PLACE, TIMEOUT_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    place = {name: value for name, value in os.environ.items() if name not in _PLACE}
    return place | {
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "PYTHONWARNINGS": "ignore::RuntimeWarning",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        **more,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(name: str, folder: Path, **more: str) -> list[subprocess.Popen[str]]:
    """Two ranks of `distributed_worker`."""
    port = str(free_port())
    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "distributed_worker.py"), name, str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **more),
        )
        for rank in range(2)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit codes and outputs; an error, and no process left, if they take too long."""
    deadline = time.monotonic() + LIMIT
    try:
        outputs = [p.communicate(timeout=deadline - time.monotonic())[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    return [(p.returncode, output) for p, output in zip(processes, outputs, strict=True)]


def results_of(group: str, folder: Path) -> list[dict[str, str]]:
    """By rank, what came of each check."""
    outputs = finish(start(group, folder))
    assert [code for code, _ in outputs] == [0, 0], outputs
    return [json.loads((folder / f"{group}.{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    return results_of("helpers", tmp_path_factory.mktemp("helpers"))


@pytest.mark.parametrize("name", [check.__name__ for check in worker.HELPERS])
def test_helpers(name: str, helpers: list[dict[str, str]]) -> None:
    assert [result.get(name) for result in helpers] == ["ok", "ok"]


# --- one that ends, one that is silent --------------------------------------------------------


def test_nobody_waits_for_a_process_that_is_gone_or_silent(tmp_path: Path) -> None:
    gone, silent = start("ends", tmp_path), start("sleeps", tmp_path, **{TIMEOUT_VARIABLE: "2"})
    (main, output), (other, _) = finish(gone)
    assert (main, other) == (1, 7), output
    message = (tmp_path / "ends.txt").read_text()
    assert message.startswith("rank 0 of 2 lost touch with the others: one ended, or was silent")
    code = silent[0].wait(LIMIT)
    silent[1].kill()
    assert code == 1
    assert f"{TIMEOUT_VARIABLE} (2 s)" in (tmp_path / "sleeps.txt").read_text()
    finish(silent)


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
