"""The callback of Lightning: what it logs is what one evaluation gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dvae_fast import IWAE, estimate_log_likelihood

if TYPE_CHECKING:
    from pathlib import Path

L: Any = pytest.importorskip("lightning.pytorch")
ours: Any = pytest.importorskip("dvae_fast.integrations.lightning")

N, D, K = 11, 6, 15
pytestmark = [pytest.mark.library, pytest.mark.filterwarnings("ignore")]


class Module(L.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.model = IWAE(D, 2, (4,))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.model.loss(batch[0])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.parametrize("limit", [None, 7])
def test_what_is_logged_is_an_evaluation(limit: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.rand(N, D).round()
    module = Module()
    callback = ours.EvaluateLikelihood(K, limit=limit, seed=5)
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[callback], logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    data = TensorDataset(x, torch.arange(N))
    trainer.fit(module, DataLoader(data, batch_size=4), DataLoader(data, batch_size=4))
    expected = estimate_log_likelihood(module.model, x[:limit], K, seed=5)
    torch.testing.assert_close(callback.estimate.log_likelihood, expected.log_likelihood)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val_log_likelihood"] == pytest.approx(expected.mean, rel=1e-5)
    assert logged["val_elbo"] == pytest.approx(float(expected.elbo.mean()), rel=1e-5)
    assert {"val_ess", "val_pareto_k"} <= logged.keys()
    assert module.model.training


def test_wrong_arguments() -> None:
    for options, rule in (
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"limit": 0}, "limit must be >= 1, got 0"),
        ({"every": 0}, "every must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=rule):
            ours.EvaluateLikelihood(**options)
    callback = ours.EvaluateLikelihood()
    trainer: Any = type("Trainer", (), {"sanity_checking": False})()
    with pytest.raises(TypeError, match=r"a batch must be x or a tuple .*, got dict"):
        callback.on_validation_batch_end(trainer, None, None, {"x": 1}, 0)
