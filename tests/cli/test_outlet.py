"""What is told is not what is done: terminals without signs, readers who go, disks that fill up."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from dvae_fast import __version__, cli
from dvae_fast.cli.outlet import Outlet, say, standard_outlets
from dvae_fast.reproduction import processes
from dvae_fast.training import train
from dvae_fast.training.run import Run

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--latent-size", "4", "--hidden-sizes", "9,7", "-M", "2", "-K", "3", "--batch-size", "237",
        "--threads", "1", "--no-tensorboard"]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        monkeypatch.delenv(name, raising=False)
    # Pictures take longer than all the rest, and say nothing.
    monkeypatch.setattr(cli.train, "run_pictures", lambda *_: [])
    monkeypatch.setattr(cli.results, "evaluation_pictures", lambda *_: None)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "it"
    old, sys.argv = sys.argv, ["", "train", *TINY, "--epochs", "1", "--run-dir", str(folder),
                               "--evaluate-k", "0", "-q"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    sys.argv = old
    return folder


class Gone(io.StringIO):
    """A stream whose reader leaves after so many writes."""

    def __init__(self, after: int, error: Exception) -> None:
        super().__init__()
        self.left, self.error = after, error

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.left < 0:
            raise self.error


def main(monkeypatch: pytest.MonkeyPatch, stdout: Any, stderr: Any, *arguments: str | Path) -> int:
    """The exit code of the program with these standard streams."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["dvae-fast", *map(str, arguments)])
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    return code


# --- signs that an encoding lacks -------------------------------------------------------------


def encoded(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")


COMMANDS = ("train", "evaluate", "sample", "reproduce", "info", "check")


@pytest.mark.parametrize(
    "encoding, arguments",
    [
        *(("ascii", (name, "--help")) for name in COMMANDS),
        ("latin-1", ("train", "--help")),
        ("cp437", ("--help",)),
        ("ascii", ("info",)),
        ("latin-1", ("reproduce", "--list")),
        ("ascii", ("sample", "{run}", "--out", "ξ.npz")),
        ("latin-1", ("evaluate", "{run}", "--k", "3", "--limit", "2")),
        ("ascii", ("evaluate", "{run}", "--k", "3", "--limit", "2")),
        ("ascii", ("evaluate", "{run}", "--method", "ais", "--k", "2", "--limit", "2",
                   "--temperatures", "3")),
        ("ascii", ("train", *TINY, "--epochs", "1", "--run-dir", "ξ", "--evaluate-k", "3")),
        ("ascii", ("train", "--model", "ξ")),
    ],
    ids=lambda a: a if isinstance(a, str) else "-".join(a[:3]),
)  # fmt: skip
def test_every_command_speaks_every_encoding(
    encoding: str, arguments: tuple[str, ...], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout, stderr = encoded(encoding), encoded(encoding)
    given = [a.replace("{run}", str(run_dir)) for a in arguments]
    code = main(monkeypatch, stdout, stderr, *given)
    wrong = arguments[-1] == "ξ"
    assert code == (2 if wrong else 0)
    said = (stderr if wrong else stdout).buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert said.strip()
    assert "Traceback" not in said
    if encoding == "ascii" and arguments[0] == "evaluate" and "--k" in arguments:
        assert "log p(x)            -" in said
        assert " +/- " in said
        assert json.loads((run_dir / "evaluation.json").read_text())["examples"] == 2


def test_a_sign_is_replaced_and_the_rest_is_kept() -> None:
    stream = encoded("latin-1")
    outlet = Outlet(stream)
    assert outlet.write("é − x̃ \ud800 ü\n") == 11
    outlet.writelines(["a", "∑"])
    outlet.flush()
    assert stream.buffer.getvalue().decode("latin-1") == "é - x~ ? ü\na?"  # type: ignore[attr-defined]
    assert (outlet.encoding, outlet.isatty()) == ("latin-1", False)
    with pytest.raises(TypeError, match="must be str, not bytes"):
        outlet.write(b"")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("encoding", "plain"),
    [("ascii", "-3.10 +/- 0.02, k^ <= 1x2*3... ?"), ("latin-1", "-3.10 ± 0.02, k^ <= 1×2·3... ?"),
     ("utf-8", "−3.10 ± 0.02, k̂ ≤ 1×2·3… ξ")],
)  # fmt: skip
def test_a_number_keeps_its_sign(encoding: str, plain: str) -> None:
    stream = encoded(encoding)
    outlet = Outlet(stream)
    outlet.write("−3.10 ± 0.02, k̂ ≤ 1×2·3… ξ")
    outlet.flush()
    assert stream.buffer.getvalue().decode(encoding) == plain  # type: ignore[attr-defined]


# --- readers who go ---------------------------------------------------------------------------

PIPE = BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize(
    "error, after",
    [(PIPE, 0), (OSError(errno.EIO, "Input/output error"), 2),
     (ValueError("I/O operation on closed file"), 1)],
    ids=["pipe", "terminal later", "closed"],
)  # fmt: skip
def test_training_and_evaluation_go_on_untold(
    error: Exception, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = Gone(after, error), Gone(0, PIPE)
    code = main(monkeypatch, out, err, "train", *TINY, "--epochs", "3", "--run-dir", "r",
                "--evaluate-k", "5")  # fmt: skip
    assert code == 0
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert (metrics["status"], metrics["epochs_done"]) == ("finished", 3)
    assert metrics["evaluation"] == json.loads((tmp_path / "r" / "evaluation.json").read_text())
    (tmp_path / "r" / "evaluation.json").unlink()
    for method in ("importance", "ais"):
        extra = ["--temperatures", "3"] if method == "ais" else []
        assert main(monkeypatch, Gone(after, error), err, "evaluate", "r", "--k", "4", "--limit",
                    "3", "--method", method, *extra) == 0  # fmt: skip
        assert json.loads((tmp_path / "r" / "evaluation.json").read_text())["method"] == method


def test_closed_streams_are_no_streams(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["evaluate", str(run_dir), "--k", "6", "--limit", "3"]
    assert main(monkeypatch, None, None, *arguments) == 0
    assert json.loads((run_dir / "evaluation.json").read_text())["k"] == 6
    assert main(monkeypatch, None, None, "evaluate", str(run_dir), "--k", "0") == 2


def test_a_disk_full_of_output_is_told_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, err = Gone(1, OSError(errno.ENOSPC, "No space left on device")), io.StringIO()
    arguments = ["evaluate", str(run_dir), "--k", "7", "--limit", "3"]
    assert main(monkeypatch, full, err, *arguments) == 0
    assert err.getvalue() == "dvae-fast: cannot print: No space left on device\n"
    assert json.loads((run_dir / "evaluation.json").read_text())["k"] == 7


def test_the_runs_of_a_table_go_on_untold(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def run_all(runs: Any, folder: Any, jobs: int, report: Any) -> None:
        for run in runs:
            report(run, processes.FAILED, "two\nlines")
            done.append(run.name)

    monkeypatch.setattr(processes, "run_all", run_all)
    arguments = ["reproduce", "--rows", "frey-*", "--seeds", "2", "--folder", "f"]
    assert main(monkeypatch, Gone(1, PIPE), Gone(0, PIPE), *arguments) == 1
    assert len(done) == 4
    err = io.StringIO()
    assert main(monkeypatch, Gone(0, PIPE), err, *arguments) == 1
    assert err.getvalue().splitlines()[0] == "dvae-fast: frey-vae-seed0 failed: two lines"


def test_a_real_pipe_without_a_reader(tmp_path: Path) -> None:
    """Python's own streams, too, which are written out when it ends."""
    program = ("import sys, typer; from dvae_fast.cli.outlet import *\n"
               "with standard_outlets():\n"
               "    for i in range(9):\n"
               "        print('x' * 9999); say('y'); typer.echo('z'); new_console().print('ü')\n"
               "    open('done', 'w').close()")  # fmt: skip
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True,
        env=environment, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").exists()


# --- warnings, versions, defects --------------------------------------------------------------


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), standard_outlets():
        warnings.simplefilter("always")
        warnings.warn("the disk\nis full", RuntimeWarning, stacklevel=1)
        say("x")
    assert capsys.readouterr() == ("x\n", "dvae-fast: warning: the disk is full\n")


def test_the_version_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    assert main(monkeypatch, out, io.StringIO(), "--version") == 0
    assert out.getvalue() == f"dvae-fast {__version__}\n"


@pytest.mark.parametrize(
    "error",
    [ValueError("inside"), UnicodeEncodeError("ascii", "−", 0, 1, "x")],
    ids=["value", "unicode"],
)
@pytest.mark.parametrize("where", ["step", "callback", "batch"])
def test_a_defect_inside_the_work_is_no_wrong_option(
    error: Exception, where: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    arguments: list[str | Path] = ["train", *TINY, "--epochs", "2", "--run-dir", "r"]
    if where == "step":
        monkeypatch.setattr(Run, "step", fail)
    elif where == "callback":
        real = train
        monkeypatch.setattr(cli.train, "train", lambda *a, **k: real(*a, **k | {"on_epoch": fail}))
    else:
        real_advance = cli.evaluate._Bar.advance

        def advance(bar: Any, state: Any) -> None:
            real_advance(bar, state)
            raise error

        monkeypatch.setattr(cli.evaluate._Bar, "advance", advance)
        arguments = ["evaluate", run_dir, "--k", "3", "--limit", "3"]
    monkeypatch.setattr(sys, "argv", ["dvae-fast", *map(str, arguments)])
    with pytest.raises(type(error)) as caught:  # Python prints it, with exit code 1
        cli.app([str(a) for a in arguments], standalone_mode=False)
    assert caught.value is error
