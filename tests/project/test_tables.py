"""The tables in docs/ are what their commands make of the runs that are kept."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import pytest
from docs_script import DOCS, load_script

from dvae_fast.reproduction import table
from dvae_fast.reproduction.rows import FIGURES, ROWS
from dvae_fast.reproduction.runs import read_results
from dvae_fast.reproduction.table import by_row

if TYPE_CHECKING:
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


def test_what_is_said_of_omniglot_is_its_runs() -> None:
    """All eight rows have three seeds; with noise every column is worse, and the text has the NLLs'
    intervals, all above 0."""
    runs = by_row(read_results(DOCS / "reproduction" / "small"))
    rows = [row for row in ROWS.values() if row.table == "omniglot"]
    assert len(rows) == 8
    assert all(list(runs[row.name]) == [0, 1, 2] for row in rows)
    text = " ".join((DOCS / "reproduction.md").read_text(encoding="utf-8").split())
    for row in rows:
        if row.baseline is None:
            continue
        for name in FIGURES:
            ours, theirs = (
                {seed: run["figures"][name] for seed, run in runs[each].items()}
                for each in (row.name, row.baseline)
            )
            found = table.paired_difference(ours, theirs)
            assert found is not None
            assert found.half_width is not None
            low, high = found.mean - found.half_width, found.mean + found.half_width
            assert low > 0, (row.name, name)
            if name == "nll":
                assert f"{found.mean:.2f} [{low:.2f}, {high:.2f}]" in text, row.name


def test_what_is_said_of_noise_at_the_papers_length_is_its_runs() -> None:
    runs = by_row(read_results(DOCS / "reproduction" / "full"))
    vae, dvae = runs["vae-k1"], runs["dvae-k1-5"]
    assert list(vae) == list(dvae) == [0], "of more seeds than one there is an interval to be told"
    for run in (vae[0], dvae[0]):
        assert run["settings"]["epochs"] == 5000
    figures = dvae[0]["figures"]
    more = {name: figures[name] - vae[0]["figures"][name] for name in FIGURES}
    published = ROWS["dvae-k1-5"].published
    assert published is not None
    text = " ".join((DOCS / "reproduction.md").read_text(encoding="utf-8").split())
    for said in (
        f"costs DVAE {more['clean']:.2f} nats of the bound given the clean x, and both the "
        f"ten-sample bound and the NLL are {-more['ten']:.2f} nats better",
        f"one-sample bound is {figures['clean'] - published.value:.1f} nats above that, its "
        f"ten-sample bound {published.value - figures['ten']:.1f} below",
        f"that of 680 has {runs['iwae-k5'][0]['figures']['own']:.2f}.",
    ):
        assert said in text, said
    assert f"{more['nll']:.2f}" == f"{more['ten']:.2f}"
    claims = " ".join((DOCS / "claims.md").read_text(encoding="utf-8").split())
    assert (
        "differs by a quarter of a nat of the bound given the clean x, against the noise" in claims
    )
    assert 0.2 < more["clean"] < 0.3


def test_what_is_not_run_yet_is_said_to_be() -> None:
    tables = {ROWS[name].table for name in by_row(read_results(DOCS / "reproduction" / "full"))}
    said = "to the letter none has been run" in " ".join(
        (DOCS / "reproduction.md").read_text(encoding="utf-8").split()
    )
    assert said is ("burda-exact" not in tables)
