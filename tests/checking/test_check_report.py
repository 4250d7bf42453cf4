"""The report, and the command line that prints it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from forks import Program

from dvae_fast.checking import CheckError, command, machine, resolve_device, run
from dvae_fast.checking.limits import compare
from dvae_fast.checking.process import environment
from dvae_fast.checking.report import FAILED, PASSED, SKIPPED, CheckReport, Row

if TYPE_CHECKING:
    from pathlib import Path


def row(operator: str, what: str, verdict: str, worst: float, *operators: str) -> Row:
    detail = "got 1, expected 2" if verdict == FAILED else ""
    return Row(operator, what, "float32", "avx2", 3, worst, worst, 1.0, verdict, detail, operators)


GOOD = CheckReport(
    {"name": "a CPU", "kernels": True, "isas": ["base"]},
    (row("iwae", "values", PASSED, 0.5, "iwae"), row("corrupt", "masks", PASSED, 0.0, "corrupt")),
    2.0,
)
BAD = CheckReport(
    {"name": "a CPU"},
    (*GOOD.rows, row("softplus", "values", FAILED, math.inf, "softplus")),
    2.0,
)


@pytest.mark.parametrize("report", [GOOD, BAD])
def test_json_gives_the_report_back(report: CheckReport) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert CheckReport.from_dict(json.loads(text)) == report


def test_table_and_summary() -> None:
    lines = str(BAD).splitlines()
    assert lines[0].split() == [
        "operator", "direction", "cases", "float32", "float64", "bfloat16", "float16", "bits",
        "verdict",
    ]  # fmt: skip
    by_name = {line.split()[0]: line.split() for line in lines[2:5]}
    assert by_name["iwae"][3] == "0.5"
    assert by_name["corrupt"][-2:] == ["same", "passed"]
    assert by_name["softplus"][-1] == "failed"
    assert "softplus values float32 avx2: got 1, expected 2" in str(BAD)
    assert "softplus failed" in repr(BAD)
    assert "all passed" in repr(GOOD)


def test_function_that_fails_on_operators_that_pass_fails_them_all() -> None:
    function = row("iwae_loss", "gradients", FAILED, 7.0, "iwae", "rescale_")
    alone = CheckReport({}, (row("iwae", "values", PASSED, 0.1, "iwae"), function), 1.0)
    assert alone.failed_operators == ("iwae", "rescale_")
    known = CheckReport({}, (row("iwae", "values", FAILED, 3.0, "iwae"), function), 1.0)
    assert known.failed_operators == ("iwae",)


def test_broken_off_or_skipped() -> None:
    broken = CheckReport(GOOD.machine, GOOD.rows, 2.0, incomplete="the GPU is gone")
    assert not broken.passed
    assert "broken off: the GPU is gone" in repr(broken)
    skipped = CheckReport({}, (row("mlp_log_weights", "values", SKIPPED, 0.0),), 1.0)
    assert skipped.passed


@pytest.mark.parametrize(
    "got, expected, worst",
    [
        ([1.0, 2.0], [1.0, 2.5], 5.0),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([math.inf, -math.inf], [math.inf, math.inf], math.inf),
        ([1.0, 3.0], [1.0, math.inf], math.inf),
        ([math.inf, 3.0], [1.0, 3.0], math.inf),
    ],
)
def test_comparison(got: list[float], expected: list[float], worst: float) -> None:
    allowed = torch.tensor([0.1, 0.1], dtype=torch.float64)
    found = compare(torch.tensor(got), torch.tensor(expected, dtype=torch.float64), allowed)
    assert found.worst == worst
    assert bool(found.wrong) == (worst > 1)
    assert bool(found.detail) == (worst > 1)


def test_comparison_of_bits_and_shapes() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    assert compare(one.float(), one, zero).worst == 0
    assert compare(torch.tensor([1.0, 1.0 + 2**-23]), one, zero).worst == math.inf
    assert "shape (3,), not (2,)" in compare(torch.ones(3), one, one).detail


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[CheckReport]:
    """What the check will find; it is not run."""
    reports = [GOOD]
    monkeypatch.setattr(run, "run_checks", lambda *_, **__: reports[0])
    return reports


def test_exit_codes_and_json(
    found: list[CheckReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    assert command.main(["--device", "cpu", "--json", str(file)]) == 0
    assert "all passed" in capsys.readouterr().out
    assert json.loads(file.read_text())["passed"] is True
    found[0] = BAD
    assert command.main(["--device", "cpu", "--json", "-"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["failed_operators"] == ["softplus"]


def test_dvae_fast_check(found: list[CheckReport], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from dvae_fast.cli import app

    result = CliRunner().invoke(app, ["check", "--device", "cpu"])
    assert result.exit_code == 0
    assert "all passed" in result.output
    found[0] = BAD
    result = CliRunner().invoke(app, ["check", "--device", "cpu", "--small", "--json", "-"])
    assert result.exit_code == 1
    assert json.loads(result.output)["failed_operators"] == ["softplus"]
    assert CliRunner().invoke(app, ["check", "--device", "tpu"]).exit_code == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "tpu"], "device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "meta"], "device must be cpu, cuda or cuda:N, got 'meta'"),
        (["--device", "cpu", "--json", "/no/such/folder/x"], "No such file or directory"),
        (["--device", "cpu", "--json", "/"], "must name a file"),
    ],
)
def test_wrong_usage_is_one_line_before_any_work(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "run_checks", lambda *_, **__: pytest.fail("the check ran"))
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    "error", ["No CUDA GPUs are available", "The NVIDIA driver on your system is too old\nmore"]
)
def test_gpu_that_cannot_be_used_is_said_in_torchs_words(
    error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(CheckError) as caught:
        resolve_device("cuda")
    assert str(caught.value) == f"no GPU can be used: {error.splitlines()[0]}"


def test_device_number_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(CheckError, match=r"device must be below cuda:2, got 'cuda:5'"):
        resolve_device("cuda:5")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


def test_kinds_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        def __init__(self, name: str, major: int, minor: int) -> None:
            self.name, self.major, self.minor = name, major, minor

    gpus: list[Any] = [Properties("A", 8, 0), Properties("B", 9, 0), Properties("A", 8, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpus[i])
    assert machine.cuda_kinds() == [("A", "8.0", "cuda:0"), ("B", "9.0", "cuda:1")]


@pytest.mark.process
@pytest.mark.parametrize("where, code, error", [(None, 0, ""), ("/dev/full", 2, "cannot print")])
def test_table_that_nobody_takes_costs_a_line_at_most(
    where: str | None, code: int, error: str
) -> None:
    program = (
        "from dvae_fast.checking import CheckReport, command\n"
        "command.check = lambda _: CheckReport({}, (), 1.0)\n"
        "raise SystemExit(command.run_command('cpu'))"
    )
    done = Program("-c", program, env=environment(), out=where).result()
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == bool(error)
    assert all(error in line for line in lines)
