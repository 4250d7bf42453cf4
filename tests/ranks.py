"""Processes of several ranks: their environment, and how long they may take."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import runpy
import socket
import sys
import uuid
from pathlib import Path

from forks import Program

ROOT = Path(__file__).resolve().parents[1]
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: what the ranks would load
LOADED = (
    "dvae_fast.cli", "dvae_fast.training", "matplotlib.figure", "sklearn.datasets",
    "torch.utils.tensorboard", "typer.testing",
)  # fmt: skip
LIMIT = 240.0  # seconds for both ranks to finish, on a loaded machine


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    place = {name: value for name, value in os.environ.items() if name not in PLACE}
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


def torchrun(worker: str, *arguments: str, parts: int, limit: float = LIMIT) -> list[int | str]:
    """Two ranks of a program, which gets a free port after its arguments for each of its parts but
    the first: the launcher's exit status, its output and its errors.
    """
    ports = (str(free_port()) for _ in range(parts - 1))
    done = Program(__file__, worker, *arguments, *ports, env=environment()).result(limit)
    return [done.returncode, done.stdout, done.stderr]


def launch(arguments: list[str]) -> None:
    """As torchrun does, with ranks that need not load anything: they are forked."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for module in LOADED:
        importlib.import_module(module)
    gc.freeze()
    config = LaunchConfig(
        1, 1, 2, run_id=str(uuid.uuid4()), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, _rank)(arguments)


def _rank(arguments: list[str]) -> None:
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
    os._exit(0)  # else it waits for the launcher to take a result, which may be ending it


def meet_elsewhere(port: str) -> None:
    """A group of its own for each part of a program: torchrun's is spent."""
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    os.environ["MASTER_PORT"] = port


def program(*arguments: str) -> tuple[int, str]:
    """``python -m dvae_fast``, with nothing joined before: its exit status and what it prints."""
    sys.argv = ["dvae_fast", *arguments]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_module("dvae_fast", run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0), printed.getvalue()
    return 0, printed.getvalue()


if __name__ == "__main__":
    launch(sys.argv[1:])
