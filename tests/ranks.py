"""Processes of several ranks: their environment, and how long they may take."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
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
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", worker]
    ports = (str(free_port()) for _ in range(parts - 1))
    launcher = subprocess.Popen(
        [sys.executable, *command, *arguments, *ports],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        output = launcher.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        launcher.terminate()  # and, with it, both ranks
        output = launcher.communicate()
    return [launcher.returncode, *output]


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
