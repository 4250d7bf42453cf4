"""Training whose matrix products are of bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from interrupts import StopAfter

from dvae_fast.files import CHECKPOINT, load_tensors
from dvae_fast.training import TrainConfig, default_config, run, stopping, train

if TYPE_CHECKING:
    from pathlib import Path


def tiny(dtype: str, **options: object) -> TrainConfig:
    sizes = {"latent_size": 3, "hidden_sizes": (17, 9), "batch_size": 211, "epochs": 3}
    return default_config("dvae", **(sizes | {"dtype": dtype, "seed": 4} | options))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / CHECKPOINT)[0]


def same(a: Path, b: Path) -> bool:
    one, other = tensors(a), tensors(b)
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


@pytest.mark.parametrize("encoder", ["mlp", "gru"])
def test_weights_stay_float32_and_the_bound_is_near(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is emulated, and layer by layer."""
    monkeypatch.setattr(run, "has_bfloat16", lambda device: True)
    sizes = {} if encoder == "mlp" else {"hidden_sizes": (6, 5), "epochs": 1, "train_examples": 300}
    bounds = {}
    for dtype in ("float32", "bfloat16"):
        config = tiny(dtype, encoder=encoder, **sizes)
        bounds[dtype] = train(config, tmp_path / dtype)["history"][-1]["valid_bound"]
        assert all(
            t.dtype == torch.float32
            for name, t in tensors(tmp_path / dtype).items()
            if name.startswith(("model/", "optimizer/")) and t.dim()
        )
    assert bounds["bfloat16"] == pytest.approx(bounds["float32"], abs=1.0)
    assert not same(tmp_path / "float32", tmp_path / "bfloat16") or encoder == "mlp"


def test_it_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tiny("bfloat16"), whole)
    monkeypatch.setattr(stopping, "REPORT_SECONDS", 0.0)
    part = train(tiny("bfloat16"), parts, on_progress=StopAfter(9))
    assert part["status"] == "interrupted"
    train(tiny("bfloat16"), parts, resume=True)
    assert same(whole, parts)


def test_without_instructions_for_it_it_is_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "has_bfloat16", lambda device: False)
    for dtype in ("float32", "bfloat16"):
        train(tiny(dtype, epochs=1), tmp_path / dtype)
    assert same(tmp_path / "float32", tmp_path / "bfloat16")
