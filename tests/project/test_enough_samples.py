"""What docs/reading.md says of how many samples are enough is what the file holds."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from docs_script import DOCS, load_script

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

MODELS = json.loads((DOCS / "enough_samples.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("enough_samples")


def test_the_tables_are_the_files(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "reading.md"
    text = (DOCS / "reading.md").read_text(encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    options = ["--plot", "--page", str(page), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["enough_samples.py", *options])
    script.main()
    assert page.read_text(encoding="utf-8") == text
    assert (tmp_path / script.FIGURE).stat().st_size > 10_000
    assert (DOCS / "figures" / script.FIGURE).is_file()
    (images,) = re.findall(r"(\d+) images that each of three models makes", " ".join(text.split()))
    assert {len(model["lower"]) for model in MODELS.values()} == {int(images)}


def test_what_is_said_in_words_holds(script: ModuleType) -> None:
    digits, *mnist = (script.summary(model) for model in MODELS.values())
    for found in (digits, *mnist):  # the bracket is one, within its error
        assert found["bracket"][0] > -3 * found["bracket"][1]
    assert abs(digits["missing"]["50000"][0]) < 0.05
    assert digits["heavy"] <= 4
    for found in mnist:
        assert found["heavy"] == len(MODELS["VAE, MNIST"]["lower"])
        assert found["missing"]["50000"][0] > 3 * found["missing"]["50000"][1]
        assert found["missing_at"][0] > 5 * found["foretold"][0]
        assert max(abs(found["by_pareto_k"]), abs(found["by_ess"])) < 0.4


def test_the_file_holds_what_the_script_measures(script: ModuleType) -> None:
    assert list(MODELS) == list(script.MODELS)
    for model in MODELS.values():
        assert list(model["missing"]) == [str(k) for k in script.SIZES]
        for name in ("upper", "missing_at", "pareto_k", "ess", "foretold"):
            assert len(model[name]) == len(model["lower"])


def test_a_summary_worked_out_by_hand(script: ModuleType) -> None:
    model: dict[str, Any] = {
        "lower": [-90.0, -80.0, -70.0, -60.0], "upper": [-89.0, -79.0, -69.0, -59.0],
        "missing": {"50": [1.0, 3.0, 3.0, 5.0]}, "missing_at": [0.5, 1.5, 2.5, 5.5],
        "pareto_k": [0.9, 0.2, 0.8, 0.71], "ess": [9.0, 99.0, 7.0, 8.0],
        "foretold": [0.1, 0.1, 0.1, 0.1],
    }  # fmt: skip
    found = script.summary(model)
    assert found["bracket"] == [1.0, 0.0]
    assert found["missing"]["50"] == [3.0, 0.816]  # s² = 8/3, s/2
    assert found["heavy"] == 3
    # 1 − 6 Σd² / (4 · 15): ranks 4, 1, 3, 2 against 1, 2, 3, 4, and of −ess 2, 1, 4, 3
    assert found["by_pareto_k"] == pytest.approx(1 - 14 / 10)
    assert found["by_ess"] == pytest.approx(1 - 4 / 10)
