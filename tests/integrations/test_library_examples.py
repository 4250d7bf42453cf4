"""The examples that train by a library, small: what they give is what they say it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from documents import ROOT, load_path

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.library, pytest.mark.filterwarnings("ignore")]

EXAMPLES = ROOT / "examples"


def _run(library: str, name: str, *settings: int) -> Any:
    pytest.importorskip(library)
    return load_path(EXAMPLES / f"{name}.py").main(*settings)


def test_a_loop_by_accelerate() -> None:
    # Untrained logits are at −64 log 2 = −44.4, independent pixels at −27.
    assert -44 < _run("accelerate", "accelerate_loop", 2, 20) < -15


def test_a_model_by_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logged = _run("lightning", "lightning_iwae", 2, 20)
    assert -44 < logged["val_log_likelihood"] < -15
    assert logged["val_elbo"] < logged["val_log_likelihood"]


def test_a_model_of_pythae() -> None:
    estimate = _run("pythae", "pythae_vae", 2, 20)
    assert -46 < estimate.mean < -15
    assert 0 < estimate.mean_standard_error < 1


def test_a_model_of_scvi() -> None:
    """Within 3 standard errors of the difference: a false alarm in 370; seeds are fixed."""
    estimate, theirs = _run("scvi", "scvi_counts", 60, 2, 100)
    off = abs(estimate.mean - theirs)
    assert off < 3 * math.sqrt(2) * estimate.mean_standard_error
