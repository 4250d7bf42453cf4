"""Each example runs, small, and shows what it says it shows."""

from __future__ import annotations

import importlib.util
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import typer
from documents import ROOT
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = ROOT / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_plain_loop() -> None:
    estimate = load("plain_loop").main(epochs=3, k=20)
    # An independent Bernoulli of each pixel is at −27 nats; untrained logits at −64 log 2 = −44.
    assert -44 < estimate.mean < -15
    assert estimate.mean_standard_error < 0.3


def test_a_likelihood_of_ones_own() -> None:
    found = load("own_likelihood").main(steps=80, k=20)
    assert found["student"] > found["gaussian"]


def test_a_corruption_of_ones_own(tmp_path: Path) -> None:
    module = load("own_corruption")
    estimate = module.main(epochs=2, k=20, picture=tmp_path / "rows.png")
    assert -44 < estimate.mean < -15
    assert (tmp_path / "rows.png").stat().st_size > 1000


def test_a_conditional_model(tmp_path: Path) -> None:
    right = load("conditional").main(epochs=4, k=5, picture=tmp_path / "labels.png")
    assert right > 0.5  # by chance: 0.1
    assert (tmp_path / "labels.png").stat().st_size > 1000


def test_missing_values(tmp_path: Path) -> None:
    ours, plain = load("missing").main(epochs=8, k=20, picture=tmp_path / "filled.png")
    assert ours < plain
    assert (tmp_path / "filled.png").stat().st_size > 1000


def test_counts() -> None:
    found = load("counts").main(steps=40, k=10)
    assert found["negative_binomial"] > found["poisson"]


def test_a_flow() -> None:
    by_model, by_weights = load("evaluate_flow").main(steps=20, k=100)
    error = (by_model.mean_standard_error**2 + by_weights.mean_standard_error**2) ** 0.5
    assert abs(by_model.mean - by_weights.mean) < 4 * error  # seeds are fixed


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_it_is_listed_and_says_what_it_is(path: Path) -> None:
    assert f"[{path.name}]({path.name})" in (EXAMPLES / "README.md").read_text()
    text = path.read_text()
    assert text.startswith('"""')
    assert text.endswith('if __name__ == "__main__":\n    typer.run(main)\n')


def test_settings_are_options(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(load("missing").main)
    picture = tmp_path / "filled.png"
    done = CliRunner().invoke(app, ["--epochs", "1", "--k", "2", "--picture", str(picture)])
    assert done.exit_code == 0, done.output
    assert "error of what is filled in" in done.output
    assert picture.stat().st_size > 1000


# --- the notebook ---------------------------------------------------------------------------------

NOTEBOOK = ROOT / "docs" / "first_look.ipynb"
SMALL = {"EPOCHS": "1", "K": "10"}


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    replaced = set()
    for cell in cells("code"):
        code = "".join(cell["source"])
        for name, value in SMALL.items():
            code, count = re.subn(rf"^{name} = \d+$", f"{name} = {value}", code, flags=re.MULTILINE)
            replaced |= {name} if count else set()
        exec(compile(code, NOTEBOOK.name, "exec"), names)
    assert replaced == {*SMALL}
    assert len(names["estimate"].log_likelihood) == 300


def test_the_notebook_is_kept_with_its_pictures() -> None:
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) >= 6
    assert [cell["execution_count"] for cell in cells("code")] == list(
        range(1, len(cells("code")) + 1)
    )
    assert NOTEBOOK.stat().st_size < 500_000
