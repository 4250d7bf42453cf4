"""A model under torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def assert_compiles(model: nn.Module, x: Tensor, seed: Any) -> None:
    """The loss is one graph, and it and its gradients are the uncompiled ones."""
    parameters = list(model.parameters())
    eager = model.loss(x, seed)
    expected = torch.autograd.grad(eager, parameters)
    torch._dynamo.reset()
    loss = torch.compile(model.loss, fullgraph=True, backend="aot_eager")(x, seed)
    torch.testing.assert_close(loss, eager)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), expected)
