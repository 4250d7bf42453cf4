"""The metric: what one evaluation of all the data gives, however it comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dvae_fast import IWAE, estimate_log_likelihood

pytest.importorskip("torchmetrics")
ours: Any = pytest.importorskip("dvae_fast.integrations.torchmetrics")

N, D, K = 11, 6, 20
pytestmark = pytest.mark.library


def _model() -> IWAE:
    torch.manual_seed(0)
    return IWAE(D, 2, (4,))


def _x() -> torch.Tensor:
    return torch.rand(N, D, generator=torch.Generator().manual_seed(1)).round()


def test_batches_are_as_good_as_all_at_once() -> None:
    model, x = _model(), _x()
    metric = ours.ImportanceNLL(model, K, seed=5)
    for part in x.split(4):
        metric.update(part)
    whole = estimate_log_likelihood(model, x, K, seed=5)
    assert float(metric.compute()) == pytest.approx(-whole.mean, rel=1e-6)
    assert float(metric.standard_error) == pytest.approx(whole.mean_standard_error, rel=1e-6)
    metric.reset()
    metric.update(x)
    assert float(metric.compute()) == pytest.approx(-whole.mean, rel=1e-6)


def test_states_add_up() -> None:
    """As processes reduce them: by sums."""
    model, x = _model(), _x()
    one, other = (ours.ImportanceNLL(model, K, seed=5) for _ in range(2))
    one.update(x[:4])
    other.update(x[4:])
    together = ours.ImportanceNLL(model, K, seed=5)
    for name, reduce in together._reductions.items():
        states = torch.stack([getattr(one, name), getattr(other, name)])
        setattr(together, name, reduce(states))
    together._update_count = 1
    mean = (4 * one.compute() + 7 * other.compute()) / N
    assert float(together.compute()) == pytest.approx(float(mean), rel=1e-9)


def test_the_model_is_not_the_metrics() -> None:
    metric = ours.ImportanceNLL(_model(), K, dist_sync_on_step=True)
    assert not list(metric.parameters())
    assert not metric.state_dict()
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        ours.ImportanceNLL(_model(), 0)
    with pytest.raises(TypeError, match="model must have methods encode and decode"):
        ours.ImportanceNLL(3, K).update(_x())
