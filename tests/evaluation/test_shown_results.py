"""What an estimate shows of itself: as text, in a notebook, as a table, a picture and a file."""

from __future__ import annotations

import dataclasses
import io
import math
import sys
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dvae_fast
from dvae_fast._extras import MissingExtraError
from dvae_fast.evaluation import AISEstimate, Estimate, EvaluationProgress, LikelihoodEstimate
from dvae_fast.evaluation.progress import ProgressLine
from dvae_fast.files import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

N, D, Z, K, SEED = 7, 12, 3, 30, 5


def _model() -> dvae_fast.VAE:
    torch.manual_seed(0)
    return dvae_fast.VAE(D, Z, (4,))


def _x(n: int = N) -> Tensor:
    return torch.rand(n, D, generator=torch.Generator().manual_seed(1)).round()


@pytest.fixture(scope="module")
def estimate() -> LikelihoodEstimate:
    return dvae_fast.estimate_log_likelihood(_model(), _x(), K, seed=SEED, first_example=40)


@pytest.fixture(scope="module")
def annealed() -> AISEstimate:
    return dvae_fast.annealed_importance_sampling(
        _model(), _x(), chains=3, temperatures=4, leapfrog=1, seed=SEED
    )


def _same(one: Estimate, other: Estimate) -> bool:
    pairs = [
        (getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
    ]
    return type(one) is type(other) and all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        if isinstance(a, Tensor)
        else type(a) is type(b) and a == b
        for a, b in pairs
    )


# --- as text --------------------------------------------------------------------------------------


def test_an_estimate_is_six_lines(estimate: LikelihoodEstimate) -> None:
    lines = repr(estimate).split("\n")
    assert len(lines) == 6
    assert lines[0] == "LikelihoodEstimate of 7 examples, k = 30"
    assert f"−{-estimate.mean:.2f} ± {estimate.mean_standard_error:.3f} nats" in lines[1]
    assert f"{estimate.bits_per_dimension:.4f} bits per dimension" in lines[1]
    assert f"ELBO               −{-float(estimate.elbo.mean()):.2f} nats" in lines[2]
    assert f"{float(estimate.ess.mean()):.1f} on average" in lines[3]
    assert "Pareto k̂" in lines[4]
    assert "tensor" not in repr(estimate)
    assert all(len(line) <= 88 for line in lines)


def test_the_number_of_samples_is_said() -> None:
    more = dvae_fast.estimate_log_likelihood(_model(), _x(), 4, tolerance=1e-6, max_k=30, seed=SEED)
    assert repr(more).startswith("LikelihoodEstimate of 7 examples, k = 30 on average\n")
    one = dvae_fast.estimate_log_likelihood(_model(), _x(1), 1, seed=SEED)
    assert len(repr(one).split("\n")) == 6
    assert "± not finite nats" in repr(one)


def test_what_is_wrong_is_said(estimate: LikelihoodEstimate) -> None:
    assert repr(estimate).endswith("warnings           none") == (not estimate.warnings())
    remarked = dataclasses.replace(estimate, remarks=("<b> & " + 90 * "a",))
    count = len(remarked.warnings())
    last = repr(remarked).split("\n")[-1]
    assert last.startswith(f"  warnings           {count}: <b> & aaaa")
    assert last.endswith("a…")
    html = remarked._repr_html_()
    assert html.count(f"&lt;b&gt; &amp; {90 * 'a'}") == 1
    assert "<b>" not in html


def test_one_is_one() -> None:
    one = dvae_fast.estimate_log_likelihood(_model(), _x(1), 30, seed=SEED)
    heavy = dataclasses.replace(
        one, pareto_k=torch.tensor([0.9]).double(), ess=torch.tensor([20.0]).double()
    )
    assert repr(heavy).startswith("LikelihoodEstimate of 1 example, k = 30\n")
    assert "above 0.7 for 1 example, 0.90 in the median" in repr(heavy)
    assert heavy.warnings()[0].startswith("1 of 1 example has weights with too heavy a tail")
    ais = dvae_fast.annealed_importance_sampling(
        _model(), _x(1), chains=1, temperatures=1, leapfrog=1, seed=SEED
    )
    assert repr(ais).startswith("AISEstimate of 1 example, 1 chain, 1 temperature\n")


def test_html_has_what_the_text_has(estimate: LikelihoodEstimate, annealed: AISEstimate) -> None:
    for one in (estimate, annealed):
        html = one._repr_html_()
        for line in repr(one).split("\n")[1:-1]:
            name, value = (part.strip() for part in line.strip().split("  ", 1))
            assert name in html
            assert html.count(value) == 1
        assert all(html.count(escape(warning)) == 1 for warning in one.warnings())
        for tag in ("div", "table", "tr", "th", "td"):
            opened = html.count(f"<{tag}>") + html.count(f"<{tag} ")
            assert opened == html.count(f"</{tag}>")


def test_annealed_estimates_are_short_too(annealed: AISEstimate) -> None:
    lines = repr(annealed).split("\n")
    assert lines[0] == "AISEstimate of 7 examples, 3 chains, 4 temperatures"
    assert len(lines) == 5
    assert f"{float(annealed.acceptance.mean()):.2f}" in lines[2]
    both = dvae_fast.bidirectional(_model(), 4, chains=2, temperatures=3, leapfrog=1, seed=SEED)
    lines = repr(both).split("\n")
    assert lines[0] == ("BidirectionalEstimate of 4 simulated examples, 2 chains, 3 temperatures")
    assert f"{float(both.gap.mean()):.3f} ± " in lines[3]
    assert len(lines) == 5
    assert "<table>" in both._repr_html_()


# --- as a table -----------------------------------------------------------------------------------


def test_a_table_has_a_row_for_each_example(estimate: LikelihoodEstimate) -> None:
    pytest.importorskip("pandas")
    table = estimate.to_dataframe()
    assert table.index.tolist() == [*range(40, 40 + N)]
    assert table.index.name == "example"
    for name in ("log_likelihood", "standard_error", "ess", "elbo", "pareto_k", "spent"):
        np.testing.assert_array_equal(table[name], getattr(estimate, name).numpy())
    assert [c for c in table if c.startswith("bound_")] == ["bound_1", "bound_5", "bound_30"]
    np.testing.assert_array_equal(table["bound_5"], estimate.curve[:, 1].numpy())
    assert "curve" not in table


def test_a_table_of_as_many_examples_as_the_curve_has_k(annealed: AISEstimate) -> None:
    pytest.importorskip("pandas")
    three = dvae_fast.estimate_log_likelihood(_model(), _x(3), K, seed=SEED)
    assert len(three.curve_k) == 3
    assert "curve_k" not in three.to_dataframe()
    assert annealed.to_dataframe().columns.tolist() == [
        "log_likelihood", "standard_error", "ess", "acceptance", "step_size",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("package", "purpose", "call"),
    [
        ("pandas", "a table of the examples", lambda e: e.to_dataframe()),
        ("matplotlib", "drawing", lambda e: e.plot()),
        ("matplotlib", "drawing", lambda e: e.plot_ess()),
    ],
)
def test_without_its_package_there_is_one_line(
    package: str, purpose: str, call: Any, estimate: LikelihoodEstimate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        call(estimate)
    assert str(caught.value) == (
        f"{purpose} needs the package {package}, which is not installed: "
        "pip install 'dvae_fast[train]'"
    )


# --- as a picture ---------------------------------------------------------------------------------


def test_k_itself_is_on_the_curve(estimate: LikelihoodEstimate) -> None:
    assert estimate.curve_k == (1, 5, K)
    torch.testing.assert_close(estimate.curve[:, -1], estimate.log_likelihood)
    torch.testing.assert_close(estimate.curve_standard_error[:, -1], estimate.standard_error)
    model, x = _model(), _x(2)
    for k, asked, expected in (
        (7, (2, 3, 90), (2, 3, 7)), (6, (6, 1), (1, 6)), (5, (9,), (5,)), (5, (), ()),
    ):  # fmt: skip
        found = dvae_fast.estimate_log_likelihood(model, x, k, curve=asked, seed=SEED)
        assert found.curve_k == expected
        if expected:
            torch.testing.assert_close(found.curve[:, -1], found.log_likelihood)
    of_function = dvae_fast.estimate_from_log_weights(
        lambda x, k, seed: torch.zeros(len(x), k), x, 13, seed=SEED
    )
    assert of_function.curve_k == (1, 5, 13)


def test_an_estimate_is_drawn(estimate: LikelihoodEstimate, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = estimate.plot(tmp_path / "bounds.svg", title="mine")
    (axes,) = figure.axes
    assert axes.get_title() == "mine"
    assert axes.lines[0].get_xdata().tolist() == [1, 5, K]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), estimate.curve.mean(0).numpy())
    assert "<svg" in (tmp_path / "bounds.svg").read_text()
    (other,) = estimate.plot_ess().axes
    assert sum(patch.get_height() for patch in other.patches[:40]) == N
    assert estimate.plot_ess(ax=axes) is figure
    bare = dvae_fast.estimate_log_likelihood(_model(), _x(2), 3, curve=(), seed=SEED)
    with pytest.raises(ValueError, match="curve must have a k to be drawn"):
        bare.plot()


# --- as a file ------------------------------------------------------------------------------------


def test_a_saved_estimate_is_the_same_again(
    estimate: LikelihoodEstimate, annealed: AISEstimate, tmp_path: Path
) -> None:
    few = dataclasses.replace(
        dvae_fast.estimate_log_likelihood(_model(), _x(), 3, tolerance=0.1, curve=(), seed=2**62),
        curve_groups=None, remarks=("one", "two, of ∞"),
    )  # fmt: skip
    for one in (estimate, annealed, few):
        path = tmp_path / "estimate.npz"
        one.save(str(path))
        again = type(one).load(path)
        assert _same(one, again)
        assert repr(again) == repr(one)
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["ess"], one.ess.numpy())
    parts = [
        dvae_fast.estimate_log_likelihood(_model(), _x()[i : i + 3], K, seed=SEED, first_example=i)
        for i in (0, 3)
    ]
    for i, part in enumerate(parts):
        part.save(tmp_path / f"{i}.npz")
    loaded = [LikelihoodEstimate.load(tmp_path / f"{i}.npz") for i in range(2)]
    assert _same(LikelihoodEstimate.concat(loaded), LikelihoodEstimate.concat(parts))


def test_a_file_of_something_else_is_refused(
    estimate: LikelihoodEstimate, annealed: AISEstimate, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    refused = pytest.raises(CheckpointError, match="does not hold a LikelihoodEstimate that was")
    annealed.save(path)
    with pytest.raises(CheckpointError, match=r"a LikelihoodEstimate that was .*: it is AISEst"):
        LikelihoodEstimate.load(path)
    np.savez(path, log_likelihood=np.zeros(3))
    with refused:
        LikelihoodEstimate.load(path)
    np.savez(path, about=np.array(["x"], dtype=object))
    with refused:
        LikelihoodEstimate.load(path)
    path.write_bytes(b"PK")
    with refused:
        LikelihoodEstimate.load(path)
    estimate.save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with refused:
        LikelihoodEstimate.load(path)
    with pytest.raises(CheckpointError, match=r"cannot read .*none.npz: No such file"):
        LikelihoodEstimate.load(tmp_path / "none.npz")
    with pytest.raises(CheckpointError):
        estimate.save(path / "a.npz")


# --- on the way -----------------------------------------------------------------------------------


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_line_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := _Terminal())
    found = dvae_fast.estimate_log_likelihood(
        _model(), _x(), 9, batch_size=2, seed=SEED, progress=True
    )
    told = stream.getvalue()
    assert told.endswith("\n")
    assert told.count("\n") == 1
    last = told.rstrip().rpartition("\r")[2]
    assert last.startswith(f"7/7 examples   log p(x) −{-found.mean:.2f} ± ")
    assert last.endswith("in 0:00")


def test_progress_is_ten_lines_elsewhere() -> None:
    line = ProgressLine(stream := io.StringIO())
    for i in range(1, 98):
        line(EvaluationProgress(i, 97, 5 * i, math.nan if i == 97 else -1.0, 0.5))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("10/97 examples   log p(x) −1.00 ± 0.500 nats   0:0")
    assert lines[-1].startswith("97/97 examples   log p(x) nan")


def test_who_asks_for_progress_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = _model(), _x()
    few: dict[str, Any] = {"chains": 2, "temperatures": 2, "leapfrog": 1, "seed": SEED}
    calls = {
        "a model": lambda p: dvae_fast.estimate_log_likelihood(model, x, 2, seed=SEED, progress=p),
        "a function": lambda p: dvae_fast.estimate_from_log_weights(
            lambda x, k, seed: torch.zeros(len(x), k), x, 2, seed=SEED, progress=p
        ),
        "annealed": lambda p: dvae_fast.annealed_importance_sampling(model, x, progress=p, **few),
        "simulated": lambda p: dvae_fast.bidirectional(model, N, progress=p, **few),
    }
    for name, call in calls.items():
        call(True)
        assert "7/7 examples" in capsys.readouterr().err, name
        for silent in (None, False):
            call(silent)
            assert capsys.readouterr() == ("", ""), name
        with pytest.raises(TypeError, match=r"progress must be True, .*got int"):
            call(3)


def test_models_stay_short() -> None:
    shown = repr(dvae_fast.DIWAE(784))
    assert len(shown.splitlines()) < 40
    assert all(len(line) < 120 for line in shown.splitlines())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_print_has_only_signs_that_the_output_has(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dvae_fast.VAE(5, 2, (3,))
    estimate = dvae_fast.estimate_log_likelihood(model, torch.ones(4, 5), 7, seed=0)
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    print(estimate, flush=True)
    shown = raw.getvalue().decode(encoding)
    assert f"{abs(estimate.mean):.2f}" in shown
    assert "?" not in shown
    assert ("k̂" in shown) == (encoding == "utf-8")
