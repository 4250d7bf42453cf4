"""What a benchmark is made of: a case and its rivals, and the model and data that several share.

Tensors are made on torch's default device, so that a GPU can have the same cases.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rivals
import torch
from torch import Tensor, nn

from dvae_fast.corruptions import SaltAndPepper
from dvae_fast.models import DIWAE
from dvae_fast.reference import accumulation_dtype

Call = Callable[[], Any]
Calls = dict[str, Call]

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# 784-200-200-50-200-200-784, salt and pepper, batches of 100.
B, D, Z, HIDDEN = 100, 784, 50, (200, 200)
RATE, SALT = 0.1, 0.5
NETWORK = "784-200-200-50-200-200-784"
PLAIN = ("ours", "eager", "compile")
FLOAT = torch.float32


def caches() -> dict[str, int]:
    """Bytes of each cache of the first CPU, by name: one instance, not the sum over cores."""
    out = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            name = f"L{level}{'d' if kind == 'Data' and level == '1' else ''}"
            out[name] = int(size.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}[size[-1]]
    return out


@dataclass
class Rival:
    """One way to do a case's work: `call` is timed, `prepare` runs before each call, untimed."""

    call: Call
    prepare: Callable[[], None] | None = None
    variant: str = ""
    threads: int = THREADS
    #: the case whose work this is, where the sizes of one group are its rivals
    case: Case | None = None
    #: what the table of such a group needs: operator, axis, value, …
    extra: dict[str, Any] = field(default_factory=dict)


class Case:
    """Inputs and rivals of one group. `elements`, `bytes` and `flops` are the work of one call."""

    group = ""
    elements = bytes = flops = 0
    prepare: Callable[[], None] | None = None
    #: how many times as long as others each way to write plain code is tried
    patience = 1.0

    def ways(self, rival: str) -> Calls:
        """The calls that do `rival`'s work, by the name of their formula."""
        raise NotImplementedError

    def check(self, rival: str, result: Any) -> None:
        """Fail if `result` is not what the case asks for."""

    def build(self, rival: str) -> Rival:
        """The rival called `rival` by its fastest way, compiled."""
        calls = self.ways(rival)
        variant = rivals.fastest(calls, self.prepare, self.patience)
        return Rival(calls[variant], self.prepare, variant)

    def verify(self, rival: str, built: Rival) -> None:
        """Check the result of one call."""
        if built.prepare is not None:
            built.prepare()
        self.check(rival, built.call())


#: makes a case of a table, by its name, and times one of its rivals
Measure = Callable[[Mapping[str, Callable[[], Case]], str], None]


def rivals_of(table: Mapping[str, Iterable[str]]) -> pytest.MarkDecorator:
    """Every rival of every case of a table, for pytest."""
    pairs = [(case, rival) for case, names in table.items() for rival in names]
    return pytest.mark.parametrize(("case", "rival"), pairs)


def close(name: str, actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Relative to the largest value: loose enough for any order of summation, no looser."""
    expected = expected.detach().double()
    torch.testing.assert_close(
        actual.detach().double(),
        expected,
        rtol=tolerance,
        atol=tolerance * expected.abs().max().item(),
        msg=lambda message: f"{name}: {message}",
    )


def no_grad(function: Callable[..., Any], *args: Any, **options: Any) -> Call:
    """A call under torch.no_grad, the context a part of its time."""
    return torch.no_grad()(partial(function, *args, **options))


def make_data(b: int, d: int = D) -> Tensor:
    """Binary images of which a fifth is white."""
    return (torch.rand(b, d) < 0.2).float()


def decoder_output(
    b: int, k: int, d: int = D, dtype: torch.dtype = FLOAT
) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, x, log_ratio): binary data and logits of a trained decoder's size.

    Samples of one example differ by a few nats, so that the weights are neither flat nor one-hot.
    """
    logits = torch.randn(b, k, d).mul_(2 / math.sqrt(d)).add_(2 * torch.randn(b, 1, d))
    log_ratio = torch.randn(b, k)
    return logits.to(dtype), make_data(b, d).to(dtype), log_ratio.to(accumulation_dtype(dtype))


def make_model(
    k: int,
    d: int = D,
    z: int = Z,
    kind: Any = DIWAE,
    hidden: Sequence[int] = HIDDEN,
    **options: Any,
) -> Any:
    """The package's own, with its default activation, softplus."""
    return kind(d, z, hidden, corruption=SaltAndPepper(RATE, SALT), samples=k, **options)


def make_rival(model: DIWAE) -> rivals.DIWAE:
    """The same network in plain PyTorch, with the same parameters in the same order."""
    sizes = (model.data_size, *model.config()["hidden_sizes"], model.latent_size)
    rival = rivals.DIWAE(sizes, model.samples, RATE, SALT, model.copies)
    theirs = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    nn.utils.vector_to_parameters(theirs, rival.parameters())
    return rival


class Step:
    """A training step with fused Adam, at a rate of zero: it costs what any other does, and leaves
    the model where it started, so that every rival does the same work however often called."""

    def __init__(
        self, model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.model, self.x, self.loss = model, x, loss or model.loss
        self.optimiser = rivals.adam(model, rate=0.0)
        self.whole: Call | None = None

    def differentiate(self) -> Any:
        self.loss(self.x).backward()

    def __call__(self) -> None:
        if self.whole is not None:
            self.whole()
            return
        self.optimiser.zero_grad(set_to_none=True)  # freed rather than zeroed
        self.differentiate()
        self.optimiser.step()
