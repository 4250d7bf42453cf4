"""A training step as one CUDA graph: captured once, replayed without Python or launch overhead."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["GraphedStep", "undone"]

_WARM_UP = 3


@contextlib.contextmanager
def undone(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Whatever steps are made within the block, parameters and state are as before after it.

    In place, so that a graph that knows their addresses stays valid. State that the block made
    (Adam's, at its first step) becomes what it starts from: zero.
    """
    kept = [p.detach().clone() for p in parameters]
    states = {
        p: {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)}
        for p, state in optimizer.state.items()
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)
            for p, state in optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        before = states.get(p, {}).get(key)
                        value.zero_() if before is None else value.copy_(before)


class GraphedStep:
    """Loss, gradient and optimiser step on batches of one shape.

    Args:
        loss: of (x, seed, context=), a scalar; draws all its noise from the seed, an int64 tensor
            of one element that is read on the device, so that each replay has noise of its own.
        optimizer: with ``capturable=True``, and a tensor as its learning rate if that changes.
        x, context: a batch on the GPU; its values do not matter.

    Capturing makes a few steps on `x` and undoes them. Gradients, and the tensor returned, are
    overwritten by the next step.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        context: Tensor | None = None,
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._x = x.clone()
        self._context = None if context is None else context.clone()
        self._seed = torch.zeros(1, dtype=torch.int64, device=x.device)

        def step() -> Tensor:
            told = {} if self._context is None else {"context": self._context}
            value = loss(self._x, self._seed, **told)
            value.backward()
            optimizer.step()
            return value.detach()

        # As torch's notes on CUDA graphs ask: on a side stream, so that libraries and allocator
        # are ready, and gradients gone, so that the capture makes them in its own memory. The
        # stream is ours in the capture too: torch's own belongs to the device that was first.
        with torch.cuda.device(x.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), undone(parameters, optimizer):
                for _ in range(_WARM_UP):
                    optimizer.zero_grad(set_to_none=True)
                    step()
            torch.cuda.current_stream().wait_stream(side)
            optimizer.zero_grad(set_to_none=True)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=side):
                self._value = step()
        #: what a replay writes, also when a step outside the graph has left others with parameters
        self.gradients = [p.grad for p in parameters if p.grad is not None]

    @property
    def shape(self) -> torch.Size:
        """Of the batches it takes."""
        return self._x.shape

    def __call__(self, x: Tensor, seed: Tensor, context: Tensor | None = None) -> Tensor:
        """The loss of this step, after which the parameters have changed."""
        self._x.copy_(x)
        if self._context is not None and context is not None:
            self._context.copy_(context)
        self._seed.copy_(seed)
        self._graph.replay()
        return self._value
