"""The tables in docs/ are what their commands make of the runs that are kept."""

from __future__ import annotations

import json
import re
import statistics
import sys
from typing import TYPE_CHECKING, Any

import pytest
from docs_script import DOCS, load_script

from dvae_fast.reproduction import table
from dvae_fast.reproduction.rows import FIGURES, ROWS
from dvae_fast.reproduction.runs import read_results
from dvae_fast.reproduction.table import by_row

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

pytest.importorskip("scipy")


@pytest.mark.parametrize("scale", ["small", "full"])
def test_the_tables_of_reproduction_are_of_its_runs(scale: str, tmp_path: Path) -> None:
    page = tmp_path / "reproduction.md"
    text = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    table.put_into(page, table.markdown(read_results(DOCS / "reproduction" / scale)), scale)
    assert page.read_text(encoding="utf-8") == text


def test_the_tables_of_numbers_are_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expectations = load_script("expectations")
    page = tmp_path / "numbers.md"
    text = (DOCS / "numbers.md").read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["expectations.py", "--output", str(page)])
    expectations.main()
    assert page.read_text(encoding="utf-8") == text
    assert text.count("| `vae-k1` |") == 3  # checked, at the small scale and at the full one


def test_the_one_figure_typed_into_numbers_is_its_files() -> None:
    metrics = json.loads((DOCS.parent / "benchmarks/iwae_mnist/metrics.json").read_text())
    text = (DOCS / "numbers.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"ended at an NLL of (\d+\.\d\d)", text)
    assert float(quoted) == pytest.approx(-metrics["evaluation"]["log_likelihood"], abs=0.005)


def test_what_is_said_of_bfloat16_is_its_runs() -> None:
    runs = [
        json.loads((DOCS.parent / "benchmarks/iwae_k50_mnist" / f"{dtype}.json").read_text())
        for dtype in ("float32", "bfloat16")
    ]
    for run, dtype in zip(runs, ("float32", "bfloat16"), strict=True):
        assert (run["config"]["dtype"], run["config"]["samples"]) == (dtype, 50)
        assert run["epochs_done"] == run["config"]["epochs"] == 100
    one, two = (-run["evaluation"]["log_likelihood"] for run in runs)
    assert f"{one:.2f}" == f"{two:.2f}"
    said = f"the test NLL is {one:.2f} both ways, {abs(one - two):.3f} nats apart"
    assert said in _words("reproduction.md")


def _words(page: str) -> str:
    return " ".join((DOCS / page).read_text(encoding="utf-8").split())


def _paired(runs: Mapping[str, Mapping[int, Any]], row: str, figure: str) -> table.Difference:
    """Of a row from its baseline, over the seeds of both."""
    baseline = ROWS[row].baseline
    assert baseline is not None
    ours, theirs = (
        {seed: run["figures"][figure] for seed, run in runs[each].items()}
        for each in (row, baseline)
    )
    found = table.paired_difference(ours, theirs)
    assert found is not None
    return found


def test_what_is_said_of_omniglot_is_its_runs() -> None:
    """All eight rows have three seeds; with noise every column is worse, and the text has the NLLs'
    intervals, all above 0."""
    runs = by_row(read_results(DOCS / "reproduction" / "small"))
    rows = [row for row in ROWS.values() if row.table == "omniglot"]
    assert len(rows) == 8
    assert all(list(runs[row.name]) == [0, 1, 2] for row in rows)
    text = _words("reproduction.md")
    for row in rows:
        if row.baseline is None:
            continue
        for name in FIGURES:
            found = _paired(runs, row.name, name)
            assert found.half_width is not None
            assert found.mean > found.half_width, (row.name, name)
            if name == "nll":
                assert table.shown_difference(found) in text, row.name


def test_what_is_said_of_noise_at_the_papers_length_is_its_runs() -> None:
    runs = by_row(read_results(DOCS / "reproduction" / "full"))
    rows = ("vae-k1", "dvae-k1-5", "dvae-k1-10")
    for row in rows:
        assert list(runs[row]) == [0, 1]
        assert {run["settings"]["epochs"] for run in runs[row].values()} == {5000}
    page, claims = _words("reproduction.md"), _words("claims.md")
    for row in rows[1:]:
        own, clean, ten, nll = (
            table.shown_difference(_paired(runs, row, name)) for name in FIGURES
        )
        assert (
            f"by {clean} nats of the bound given the clean x, {ten} of that of ten samples and "
            f"{nll} of the NLL, and its own bound by {own}"
        ) in page
        assert f"{clean} and in the NLL by {nll}" in claims or f"{clean} and {nll}" in claims
    clean = {row: [runs[row][seed]["figures"]["clean"] for seed in (0, 1)] for row in rows}
    five, ten = (
        " and ".join(f"{b - a:.2f}" for a, b in zip(clean[rows[0]], clean[row], strict=True))
        for row in rows[1:]
    )
    assert f"by {five} and by {ten}, but" in page
    figures = [run["figures"] for run in runs["dvae-k1-5"].values()]
    one, ten_samples = (statistics.fmean(f[name] for f in figures) for name in ("clean", "ten"))
    published = ROWS["dvae-k1-5"].published
    assert published is not None
    for said in (
        f"one-sample bound is {one - published.value:.1f} nats above that, its ten-sample bound "
        f"{published.value - ten_samples:.1f} below",
        f"that of 680 has {runs['iwae-k5'][0]['figures']['own']:.2f}.",
    ):
        assert said in page, said


def test_what_is_said_of_burdas_code_is_its_runs() -> None:
    """How far each run came, what it has, and that no other row has any."""
    runs = by_row(read_results(DOCS / "reproduction" / "full"))
    rows = {name for name in runs if ROWS[name].table == "burda-exact"}
    assert rows == {"burda-exact-vae-k1", "burda-exact-2-vae-k1"}
    page = _words("reproduction.md")
    for row in rows:
        assert list(runs[row]) == [0]
        run, published = runs[row][0], ROWS[row].published
        assert published is not None
        done, nll = run["epochs_done"], run["figures"]["nll"]
        layers = "two stochastic layers" if "-2-" in row else "one stochastic layer"
        assert (
            f"of {layers} {done:,} of 3,280 epochs ({100 * done / 3280:.0f} %), with an NLL of "
            f"{nll:.2f}, {nll - published.value:.2f} from the published {published.value:.2f}"
        ) in page
        first, last = run["curve"][-9], run["curve"][-1]
        gained = last["valid_bound"] - first["valid_bound"]
        assert f"{gained:.2f} in its last {last['epoch'] - first['epoch']} epochs" in page
