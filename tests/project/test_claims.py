"""What docs/claims.md says is what docs/claims.py works out of the runs that are kept."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from docs_script import DOCS, load_script

if TYPE_CHECKING:
    from types import ModuleType

Figure = pytest.importorskip("matplotlib.figure").Figure
pytest.importorskip("scipy")

#: a mean and its interval, signs and line breaks aside
QUOTED = re.compile(r"(\d+\.\d\d)\s+\[([−+-]?\d+\.\d\d),\s+([−+-]?\d+\.\d\d)\]")


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    return load_script("claims")


def intervals(text: str) -> list[tuple[float, float, float]]:
    """Each by its mean's size: "gains 7.33 [6.68, 7.97]" is −7.33 [−7.97, −6.68]."""
    found = []
    for each in QUOTED.findall(text):
        mean, low, high = (float(number.replace("−", "-")) for number in each)
        found.append((mean, *sorted((abs(low), abs(high)))))
    return found


def test_every_interval_quoted_is_worked_out(
    claims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # Pixels take longest, and are nobody's here.
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).touch())
    monkeypatch.setattr(sys, "argv", ["claims.py", "--output", str(tmp_path)])
    claims.main()
    worked_out = intervals(capsys.readouterr().out)
    text = (DOCS / "claims.md").read_text(encoding="utf-8")
    quoted = intervals(text)
    assert len(quoted) >= 15
    assert len(quoted) == text.count("[") - text.count("]("), "all that stands in brackets"
    assert [each for each in quoted if each not in worked_out] == []
    figures = {f"claim_{name}.png" for name in ("denoising", "tightness", "gru", "rates")}
    assert {path.name for path in tmp_path.iterdir()} == figures
    assert {path.name for path in (DOCS / "figures").glob("claim_*")} == figures


def test_runs_that_are_missing_are_named(
    claims: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["claims.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            claims.main()
        return str(ended.value.code)

    assert said(str(tmp_path)).startswith(f"claims: {tmp_path} holds no numbers of a run")
    one = DOCS / "reproduction" / "small" / "vae-k1-seed0.json"
    (tmp_path / one.name).write_bytes(one.read_bytes())
    missing = said(str(tmp_path), "--output", str(tmp_path))
    assert missing.startswith(f"claims: {tmp_path} has no runs of diwae-k5-10, diwae-k5-5, ")
    assert " vae-k1," not in missing
    wrong = said("--output", str(tmp_path / "none"))
    assert wrong == f"claims: --output must be a folder, got {tmp_path / 'none'}"
