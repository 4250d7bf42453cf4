"""docs/semi_implicit.py: its table and figure, of runs that are all there or not."""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING, Any

import pytest
from docs_script import DOCS, load_script

from dvae_fast.files import read_json, write_json
from dvae_fast.reproduction import table

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

study = load_script("semi_implicit")


def _result(row: str, seed: int, log_p: float) -> dict[str, Any]:
    figures = {"log_p": log_p, "clean": -30.0} | (
        {} if row == "vae" else {"mixture": -31.0, "denoising": -32.5}
    )
    return {"data": "digits", "row": row, "seed": seed, "seconds": 7.4, **figures}


def test_the_table_has_paired_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3 seeds: 2, 3 and 4 on average, whose t interval is 4.303 · 1/√3; of one, none."""
    found = [_result("dvae", seed, -25.0 - seed) for seed in range(3)]
    found += [_result("sivi", seed, -23.0) for seed in range(3)]
    found += [_result("iwhvi", 1, -25.5), _result("vae", 4, -24.0)]
    write_json(tmp_path / "results.json", found)
    _main(tmp_path, monkeypatch, tmp_path / "results.json")
    begin, _, title, _, head, rule, *rows, _, end = (tmp_path / "page.md").read_text().splitlines()
    assert (begin, end) == (study.BEGIN, study.END)
    assert title == "digits, 180 test images:"
    assert head.startswith("| trained with | seeds | log p(x) | ELBO, q(z\\|x) | mixture bound")
    assert rule.count("|") == head.replace("\\|", "").count("|")
    assert rows == [
        "| VAE, no noise | 1 of 3 | −24.00 | −30.00 |  |  |  |",
        "| denoising bound | 3 of 3 | −26.00 | −30.00 | −31.00 | −32.50 |  |",
        "| SIVI, J = 7 | 3 of 3 | −23.00 | −30.00 | −31.00 | −32.50 | +3.00 [+0.52, +5.48] |",
        "| IWHVI, J = 7 | 1 of 3 | −25.50 | −30.00 | −31.00 | −32.50 | +0.50 (one seed) |",
    ]
    assert (tmp_path / "semi_implicit.png").stat().st_size > 1000


def _main(folder: Path, monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    options = ("--results", results, "--output", folder, "--page", folder / "page.md")
    monkeypatch.setattr(sys, "argv", ["semi_implicit.py", *map(str, options)])
    study.main()


@pytest.mark.parametrize("data", study.DATA)
@pytest.mark.parametrize("row", study.ROWS.values())
def test_every_row_can_be_trained(data: str, row: Any) -> None:
    config = study.config_of(data, row, 1)
    assert config.seed == 1
    assert config.copies + (config.outer_samples if "J = 7" in row.label else 0) in (1, 8)
    assert (config.model == "vae") == (config.corruption == "identity")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["semi_implicit.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            study.main()
        return str(ended.value.code)

    none = tmp_path / "none.json"
    assert said("--results", str(none)) == f"semi_implicit: {none} is not there; --train makes it"
    write_json(none, [])
    gone = tmp_path / "gone"
    wrong = said("--results", str(none), "--output", str(gone))
    assert wrong == f"semi_implicit: --output must be a folder, got {gone}"


def test_what_is_said_of_the_study_is_its_runs(tmp_path: Path) -> None:
    """All of it is there, the page has its table, and the text its differences."""
    results = read_json(DOCS / "semi_implicit.json")
    wanted = {
        (data, row, seed) for data in study.DATA for row in study.ROWS for seed in study.SEEDS
    }
    assert {(r["data"], r["row"], r["seed"]) for r in results} == wanted
    page = tmp_path / study.PAGE
    text = (DOCS / study.PAGE).read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    table.put_between(page, study.table(results) + "\n", study.BEGIN, study.END)
    assert page.read_text(encoding="utf-8") == text

    said = " ".join(text.split())
    for data in study.DATA:
        log_p = {
            name: {seed: r["log_p"] for seed, r in runs.items()}
            for name, runs in study.by_row(results, data).items()
        }
        mean = {name: statistics.fmean(values.values()) for name, values in log_p.items()}
        assert max(mean, key=lambda name: mean[name]) == "mixture"
        assert mean["dvae"] < mean["iwhvi"] < mean["dvae-m8"]
        assert mean["dvae"] < mean["sivi"] < mean["dvae-m8"]
        pairs = [("mixture", "dvae"), ("mixture", "dvae-m8"), ("mixture", "vae"), ("iwhvi", "sivi")]
        for one, other in pairs:
            found = study.interval(table.paired_difference(log_p[one], log_p[other]))
            assert found.replace("-", "−") in said, (one, other)
    best = {
        row: [r["best_epoch"] for r in results if r["data"] == "mnist" and r["row"] == row]
        for row in ("mixture", "sivi", "iwhvi")
    }
    assert max(best["mixture"]) < min(best["sivi"] + best["iwhvi"])
