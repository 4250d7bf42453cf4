"""What is asked of every model: that it compiles, learns, and is what its configuration says."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from dvae_fast.models import LatentVariableModel


def assert_compiles(model: nn.Module, x: Tensor, seed: Any) -> None:
    """The loss is one graph, and it and its gradients are the uncompiled ones."""
    parameters = list(model.parameters())
    eager = model.loss(x, seed)
    expected = torch.autograd.grad(eager, parameters)
    torch._dynamo.reset()
    loss = torch.compile(model.loss, fullgraph=True, backend="aot_eager")(x, seed)
    torch.testing.assert_close(loss, eager)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), expected)


def rise(model: nn.Module, x: Tensor, steps: int, rate: float) -> float:
    """By how much so many steps on one batch raise the mean bound."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    before = model.bound(x, 1).mean()
    for step in range(steps):
        optimiser.zero_grad()
        model.loss(x, step).backward()
        optimiser.step()
    return float(model.bound(x, 1).mean() - before)


def rebuilt(model: LatentVariableModel, x: Tensor, seed: int) -> LatentVariableModel:
    """The model from its configuration, as JSON, and its parameters: the same loss."""
    config = json.loads(json.dumps(model.config()))
    again = LatentVariableModel.from_config(config)
    assert again.config() == config
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.loss(x, seed), model.loss(x, seed))
    return again
