"""`check` finds every operator that is wrong, and nothing else."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import dvae_fast
from dvae_fast import ops, reference
from dvae_fast.checking import graphs, levels, run
from dvae_fast.checking.cases import MUTATING, OPERATORS, run_reference, upcast
from dvae_fast.checking.graphs import check_graphs
from dvae_fast.checking.limits import allowed_error
from dvae_fast.checking.many import many_samples
from dvae_fast.checking.operands import DTYPES
from dvae_fast.checking.outcomes import Tally, copied, expect, run_sample
from dvae_fast.checking.report import FAILED, PASSED
from dvae_fast.checking.run import run_checks
from dvae_fast.checking.select import for_graphs, samples
from dvae_fast.checking.terms import absolute_terms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CPU = torch.device("cpu")

# torch's, of a kernel put in the place of another, which is the point here.
pytestmark = pytest.mark.filterwarnings("ignore:Warning only once for all operators")


@pytest.fixture
def override() -> Iterator[Callable[[str, Callable[..., Any]], None]]:
    """Puts a kernel in the place of an operator's on the CPU, for one test."""
    library = torch.library.Library("dvae_fast", "IMPL")

    def put(name: str, kernel: Callable[..., Any]) -> None:
        library.impl(name, kernel, "CPU", allow_override=True)

    yield put
    library._destroy()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the cases those that lie in order, and of bfloat16 every fifth: how tensors lie, and what
    their results are rounded to, is no matter of their formula."""

    def some(*args: Any, **options: Any) -> list[Any]:
        every = [s for s in samples(*args, **options) if s.layout == "contiguous"]
        narrow = [s for s in every if s.dtype == torch.bfloat16][::5]
        return [s for s in every if s.dtype != torch.bfloat16] + narrow

    monkeypatch.setattr(run, "samples", some)


def _slightly_wrong(op: str) -> Callable[..., Any]:
    """The reference in float64 with one element of the first result off by 5 times its limit; a
    mask, by one of its bits."""

    def kernel(*args: Any) -> Any:
        dtypes = [t.dtype for t in _results(op, getattr(reference, op)(*_copies(args)), args)]
        terms = absolute_terms(op, upcast(args))
        expected = run_reference(op, upcast(args))
        sums = torch.float32  # in every case that `small` has
        out = []
        for i, (e, t, dtype) in enumerate(zip(expected, terms, dtypes, strict=True)):
            value = e.clone()
            if i == (len(expected) - 1 if op in MUTATING else 0) and e.numel():
                off = 5 * allowed_error(dtype, e, t, sums)
                at = int(torch.where(torch.isfinite(e), off / (1 + off), 0.0).argmax())
                value.view(-1)[at] += off.reshape(-1)[at]
                if op == "corrupt" and args[1] != "gaussian":
                    value = e.clone()
                    value.view(-1)[0] = 0.5 if e.view(-1)[0] != 0.5 else 0.25
            out.append(value.to(dtype))
        if op in MUTATING:
            args[0].copy_(out.pop())
        return None if not out else out[0] if len(out) == 1 else tuple(out)

    return kernel


def _copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].clone() if isinstance(args[0], Tensor) else args[0], *args[1:])


def _results(op: str, out: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    out = () if out is None else out if isinstance(out, tuple) else (out,)
    return (*out, args[0]) if op in MUTATING else out


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("op", OPERATORS)
def test_operator_off_by_a_few_times_its_limit_fails(
    op: str, override: Callable[[str, Callable[..., Any]], None]
) -> None:
    override(op, _slightly_wrong(op))
    report = run_checks(CPU, small=True, operators=(op,), all_levels=False)
    assert not report.passed
    assert report.failed_operators == (op,)
    verdicts = {(row.what, row.verdict) for row in report.rows}
    assert (("masks" if op == "corrupt" else "values"), FAILED) in verdicts
    # A gradient of the standard deviation has elements although there are no examples.
    assert op == "corrupt_backward_std" or ("empty", PASSED) in verdicts
    for row in report.rows:
        if row.verdict == FAILED and row.what != "masks":
            assert 1 < row.worst < 8, f"{row}: made wrong by 5 times the limit"
            assert row.error == pytest.approx(row.worst * row.limit)
            assert "elements off; worst at" in row.detail


@pytest.mark.usefixtures("few")
def test_wrong_and_raising_operators_are_told_from_the_rest(
    override: Callable[[str, Callable[..., Any]], None],
) -> None:
    """All operators and all functions, with three that are not right."""

    def raising(*_: Any) -> Any:
        raise RuntimeError("no such kernel\nand more")

    override("logmeanexp", _slightly_wrong("logmeanexp"))
    override("softplus_backward", raising)
    override("lse_update", lambda state, log_w: torch.full_like(state, math.nan))
    report = run_checks(CPU, small=True, all_levels=False)
    assert report.failed_operators == ("logmeanexp", "lse_update", "softplus_backward")
    by_operator = {row.operator: row for row in report.failures if row.what == "values"}
    assert "RuntimeError: no such kernel" in by_operator["softplus_backward"].detail
    assert "and more" not in by_operator["softplus_backward"].detail
    assert by_operator["lse_update"].worst == math.inf
    tried = {row.operator for row in report.rows}
    assert tried >= set(OPERATORS)
    functions = {row.operator: row for row in report.rows if row.what == "gradients"}
    assert functions["softplus"].verdict == FAILED
    assert functions["linear_log_weights"].verdict == PASSED


@pytest.mark.parametrize("op", OPERATORS)
def test_large_calls_are_large_and_can_be_evaluated(op: str) -> None:
    """As a GPU of three multiprocessors has them; on the CPU, which must pass too."""
    for dtype in DTYPES:
        for sample in many_samples(op, dtype, "cpu", 3):
            args = sample.args()
            if op == "log_weights":  # as log_weights.cuh and latent.cu choose
                n, k, d = args[0].shape
                assert n * k * 8 // 4 >= 3 * 512
                assert -(-k // 4) * 4 - k <= k // 8
                assert d * args[0].element_size() % 16 == 0
            if op == "sample_latent":
                assert args[0].shape[:2].numel() * args[2] * 16 // (3 * 1024) >= 2
            expected = expect(sample, copied(args))
            found = expected.compare(run_sample(sample, args))
            assert found.wrong == 0, f"{sample}: {found.detail}"
            assert found.elements > 0


@pytest.mark.parametrize("op", ["log_weights", "log_weights_backward", "iwae"])
def test_formula_that_makes_nan_of_an_infinite_logit_fails(
    op: str, override: Callable[[str, Callable[..., Any]], None]
) -> None:
    """0 · inf, or inf − inf, in what rows of finite numbers never show."""
    right = getattr(reference, op)

    def naive(*args: Any) -> Any:
        params = args[1] if op.endswith("backward") else args[0]
        out = right(*args)
        first = out[0] if isinstance(out, tuple) else out
        if params.numel():
            row = params.isinf().any(-1)
            first[row if op != "iwae" else row.any(-1)] = math.nan
        return out

    override(op, naive)
    report = run_checks(CPU, small=True, operators=(op,), all_levels=False)
    assert report.failed_operators == (op,)
    assert all("special" in row.detail for row in report.failures)


def test_right_operators_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an operator's other layouts each fourth; test_operators.py has them all."""

    def some(*args: Any, **options: Any) -> list[Any]:
        every = samples(*args, **options)
        apart = [[s for s in every if s.op == op and s.layout != "contiguous"] for op in OPERATORS]
        chosen = {str(s) for of_one in apart for s in of_one[::4]}
        return [s for s in every if s.layout == "contiguous" or str(s) in chosen]

    monkeypatch.setattr(run, "samples", some)
    report = run_checks(CPU, small=True, all_levels=False)
    assert report.passed, str(report)
    assert report
    assert report.failed_operators == ()
    for op in OPERATORS:
        assert {row.what for row in report.rows if row.operator == op} >= {"empty", "layouts"}
    worst = [row.worst for row in report.rows if row.what == "values"]
    assert 0 < max(worst) <= 1


def test_right_operators_pass_on_every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some, on the base level and that in use; of all the results are compared in test_isa.py."""
    chosen = ("corrupt", "linear_log_weights_backward", "rescale_")
    assert set(dvae_fast.build_info()["isas"]) <= set(levels.LEVELS)
    monkeypatch.setattr(levels, "LEVELS", ("base",))
    report = run_checks(CPU, small=True, operators=chosen)
    assert report.passed, str(report)
    if ops.library_loaded():
        for op in chosen:
            found = {row.level for row in report.rows if row.operator == op}
            assert found == {"base", dvae_fast.build_info()["isa"]}, op


@pytest.mark.parametrize(
    ("printed", "code", "expected"),
    [
        ("> iwae\nDVAE_FAST_ISA must be one of base, avx2", 1, None),  # the CPU has no such level
        ("> corrupt\n> iwae\nan error", 3, "iwae: its process ended with 3"),
        ("no torch", 1, "the start: its process ended with 1"),
    ],
)
def test_what_a_level_without_results_says(
    printed: str, code: int, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"import sys; sys.stderr.write({printed!r}); raise SystemExit({code})"
    start = subprocess.Popen

    def instead(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command[1:3] == ["-m", "dvae_fast.checking.levels"]
        return start([sys.executable, "-S", "-c", program], **options)

    monkeypatch.setattr(levels.subprocess, "Popen", instead)
    (level,) = levels.start_levels(["avx9"], True, ("iwae",), str(tmp_path))
    assert level.outcomes(time.monotonic() + 60) == expected


def test_level_whose_process_dies_blames_the_operator_that_ran(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not ops.library_loaded():
        pytest.skip("no compiled library, so no ISA levels")

    class Dead:
        name = "avx9"

        def outcomes(self, deadline: float) -> str:
            return "softplus: its process ended with -11"

        def stop(self) -> None:
            pass

    monkeypatch.setattr(levels, "start_levels", lambda *_: [Dead()])
    report = run_checks(CPU, small=True, operators=("softplus", "logmeanexp"))
    assert report.failed_operators == ("softplus",)
    (failure,) = report.failures
    assert failure.level == "avx9"
    assert "-11" in failure.detail


class Again:
    """What a captured graph does, by calling again."""

    def __init__(self, call: Callable[[], Any], device: str) -> None:
        self._call = call
        self.out = call()

    def replay(self) -> None:
        self.out = self._call()


class Stale(Again):
    """A graph that holds what was given at capture, seeds and all."""

    def replay(self) -> None:
        pass


@pytest.mark.parametrize("record, verdict", [(Again, PASSED), (Stale, FAILED)])
def test_graphs_are_replayed_with_other_numbers(record: type[Again], verdict: str) -> None:
    every = samples("cpu", small=True)
    chosen = [s for s in every if s.op not in ops.CPU_ONLY and s.dtype == torch.float32]
    operators = {s.op for s in for_graphs(chosen)}
    assert operators == set(OPERATORS) - set(ops.CPU_ONLY)
    tally = Tally()
    check_graphs(tally, chosen, "cpu", note=lambda _: None, record=record)
    rows = tally.rows()
    assert {row.operator for row in rows} == operators
    # What is mutated is the argument itself, which a stale graph leaves as it was given.
    assert {row.verdict for row in rows} == {verdict}, [r for r in rows if r.verdict != verdict]
    assert graphs.Graph.replay is not Again.replay
