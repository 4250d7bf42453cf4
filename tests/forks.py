"""Processes of Python that need not load torch and the like: forked from one that has loaded them
and nothing of the package.

What they cannot show: what happens as those are loaded, and what their libraries read from the
environment then.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: what most of them load; the server, when it is first asked for one
LOADED = (
    "torch", "torch._dynamo", "torch._subclasses.fake_tensor", "torch.utils.tensorboard",
    "matplotlib.figure", "sklearn.datasets", "typer.testing",
)  # fmt: skip

_spawn = util.spawnv_passfds
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*LOADED])
# Waited for at the end, so that its time and its children's count as the tests'.
atexit.register(forkserver._forkserver._stop)


def start() -> None:
    """The server as a copy of this process, which has loaded torch and nothing of the package."""
    resource_tracker.ensure_running()  # which is a program of its own
    util.spawnv_passfds = _fork
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = _spawn


def _fork(path: bytes, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """In the place of a new interpreter with these open: its -c's program is run here."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        util.spawnv_passfds = _spawn
        first = 3
        for each in [*sorted(descriptors), os.sysconf("SC_OPEN_MAX")]:
            os.closerange(first, each)
            first = each + 1
        # As a new interpreter has them, and not as pytest has.
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        sys.meta_path[:] = [f for f in sys.meta_path if "pytest" not in type(f).__module__]
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        atexit._clear()
        listener, *_ = descriptors
        if listener in select.select(descriptors, [], [])[0]:  # or all is over
            exec(arguments[-1], {"__name__": "__main__"})
    finally:
        os._exit(0)


def _enter(environment: Mapping[str, str], folder: str) -> None:
    """The server's environment and folder are those of whoever started it first."""
    gc.freeze()  # what the server has loaded stays, and its memory shared
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def _program(
    arguments: tuple[str, ...], output: str, environment: Any, folder: str, out: str | None
) -> None:
    _enter(environment, folder)
    for number, name in ((1, out), (2, f"{output}/err")):
        if name is None:
            read, file = os.pipe()
            os.close(read)
        else:
            file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.setsid()  # the tests' own Ctrl-C is for them alone, and what a test sends, for it alone
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("ignore", RuntimeWarning)  # of a package without its library
    kind, *rest = arguments
    try:
        if kind == "-c":
            sys.argv = ["-c"]
            exec(rest[0], {"__name__": "__main__"})
        elif kind == "-m":
            sys.argv = [*rest]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [*arguments]
            sys.path.insert(0, str(Path(kind).parent))
            runpy.run_path(kind, run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _target(environment: Any, folder: str, target: Callable[..., None], args: Any) -> None:
    _enter(environment, folder)
    target(*args)


class Program:
    """``python ARGUMENTS``, of which the first is a file, or -m or -c.

    Its output goes to ``out``, a file that is there, or None, a pipe that nobody reads; and is kept
    where that is not given.
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cwd: Any = ".",
        out: str | None = "",
    ) -> None:
        self.arguments, self._output = arguments, tempfile.TemporaryDirectory()
        for name in ("out", "err"):
            Path(self._output.name, name).touch()
        place = (dict(os.environ if env is None else env), str(Path(cwd).resolve()))
        self.process = _context.Process(
            target=_program,
            args=(
                arguments,
                self._output.name,
                *place,
                f"{self._output.name}/out" if out == "" else out,
            ),
        )
        self.process.start()
        atexit.register(self.process.kill)  # before multiprocessing waits for it

    def interrupt(self) -> None:
        """As Ctrl-C does: it and all that it has started."""
        assert self.process.pid is not None
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for(self, path: Path, seconds: float = 100.0) -> None:
        deadline = time.monotonic() + seconds
        while not path.exists():
            assert self.process.exitcode is None, self.result()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def result(self, seconds: float = 240.0) -> subprocess.CompletedProcess[str]:
        """When it has ended, which it must within so many seconds."""
        self.process.join(seconds)
        code = self.process.exitcode
        self.process.kill()
        out, err = (Path(self._output.name, name).read_text() for name in ("out", "err"))
        assert code is not None, f"{self.arguments} did not end: {err}"
        self._output.cleanup()
        return subprocess.CompletedProcess(self.arguments, code, out, err)


class Context:
    """In the place of multiprocessing's "spawn"."""

    Pipe = staticmethod(_context.Pipe)

    @staticmethod
    def Process(target: Callable[..., None], args: Any, daemon: bool) -> Any:  # noqa: N802
        place = (dict(os.environ), str(Path.cwd()))
        return _context.Process(target=_target, args=(*place, target, args), daemon=daemon)
