"""CUDA graphs of a training step: what is captured, and that capturing leaves no trace."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.models import DIWAE
from dvae_fast.training import default_config, train
from dvae_fast.training.graphed import GraphedStep, undone

if TYPE_CHECKING:
    from pathlib import Path

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

B, D = 7, 33


def _model(device: str) -> DIWAE:
    torch.manual_seed(0)
    return DIWAE(D, 3, (9, 5), corruption=SaltAndPepper(0.2), copies=2, samples=4).to(device)


def _adam(model: DIWAE, capturable: bool = False) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2, fused=True, capturable=capturable)


def _step(model: DIWAE, optimizer: torch.optim.Optimizer, x: torch.Tensor, seed: int) -> None:
    optimizer.zero_grad()
    model.loss(x, seed).backward()
    optimizer.step()


@pytest.mark.parametrize("steps", [0, 2])
def test_undone_steps_leave_no_trace(steps: int) -> None:
    """With and without state before; and the storage, which a graph knows, stays."""
    model, x = _model("cpu"), torch.rand(B, D)
    optimizer = _adam(model)
    for i in range(steps):
        _step(model, optimizer, x, i)
    other = copy.deepcopy(model)
    other_optimizer = _adam(other)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    places = [p.data_ptr() for p in model.parameters()]
    with undone(list(model.parameters()), optimizer):
        for i in range(3):
            _step(model, optimizer, x, 100 + i)
    assert [p.data_ptr() for p in model.parameters()] == places
    for i in range(3):
        _step(model, optimizer, x, i)
        _step(other, other_optimizer, x, i)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@needs_gpu
def test_replays_are_the_eager_steps() -> None:
    model, x = _model("cuda"), torch.rand(B, D, device="cuda")
    other = copy.deepcopy(model)
    optimizer, other_optimizer = _adam(model, capturable=True), _adam(other, capturable=True)
    step = GraphedStep(model.loss, optimizer, x)
    losses = []
    for i in range(5):
        batch = torch.rand(B, D, device="cuda")
        loss = step(batch, torch.tensor([i], device="cuda"))
        torch.testing.assert_close(loss, other.loss(batch, i).detach())
        _step(other, other_optimizer, batch, i)
        losses.append(loss.item())
    assert len(set(losses)) == 5  # noise of its own at each replay
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@needs_gpu
@pytest.mark.parametrize("objective", [{}, {"estimator": "dreg", "kl_warmup": 2}], ids=str)
def test_a_run_with_graphs_is_the_run_without(objective: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"latent_size": 4, "hidden_sizes": (9, 7), "epochs": 2}
    options |= {"batch_size": 237, **objective}
    plain, graphed = (
        train(
            default_config(device="cuda", cuda_graph=graph, **options),
            tmp_path / str(graph),
            tensorboard=False,
        )
        for graph in (False, True)
    )
    assert plain["test_bound"] == pytest.approx(graphed["test_bound"], abs=1e-3)
    # 112 examples are left for a step without the graph, whose gradients are tensors of their own.
    for one, other in zip(plain["history"], graphed["history"], strict=True):
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)
