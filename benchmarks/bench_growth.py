"""How cost grows: each operator and the training step over one size at a time, threads and dtypes.

Each axis of an operator is one group, whose rivals are ours and plain eager PyTorch at every value,
so that they take turns like any others. Run with ``--choose=0``: eager PyTorch is then the first of
its formulas everywhere, not the fastest at each size. `growth.py` reads the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from bench_operators import (
    CorruptCase,
    IWAELossCase,
    LatentLogRatioCase,
    LinearLogWeightsCase,
    LogMeanExpCase,
    LogWeightsCase,
    MixtureLogRatioCase,
    SampleLatentCase,
)
from bench_training import TrainingCase
from conftest import THREADS, Case, Measure, Rival
from growth import CONDITIONS

if TYPE_CHECKING:
    from collections.abc import Callable

FLOATS = ("float32", "float64")
THREAD_COUNTS = tuple(sorted({1, *(2**i for i in range(1, 10) if 2**i < THREADS), THREADS}))


@dataclass(frozen=True)
class Operator:
    """`make(**sizes)` is its case. Each axis is varied from `base`, the sizes else.

    `large` are the sizes of the axes threads and dtype, where calls should be long.
    """

    make: Callable[..., Case]
    base: dict[str, int]
    axes: dict[str, tuple[int, ...]]
    large: dict[str, int]
    dtypes: tuple[str, ...] = ()
    #: what a unit of cost is: "element", or "kFLOP" where layers of other sizes share the work
    unit: str = "element"


_MANY = (1, 4, 16, 64, 256, 1024)
_FEWER, _D, _Z = _MANY[:-1], (12, 49, 196, 784, 3136), (2, 8, 32, 128, 512)
_M = (1, 2, 4, 8, 16, 32)

OPERATORS: dict[str, Operator] = {
    "corrupt": Operator(
        lambda b, m, d: CorruptCase(m, b, d),
        {"b": 64, "m": 4, "d": 784},
        {"B": _MANY, "M": _M, "D": _D},
        {"b": 100, "m": 10, "d": 784},
    ),
    "sample_latent": Operator(
        SampleLatentCase,
        {"b": 64, "k": 16, "z": 50},
        {"B": _MANY, "K": _MANY, "Z": _Z},
        {"b": 100, "k": 50, "z": 50},
        FLOATS,
    ),
    "latent_log_ratio": Operator(
        LatentLogRatioCase,
        {"b": 64, "k": 16, "z": 50},
        {"B": _MANY, "K": _MANY, "Z": _Z},
        {"b": 100, "k": 50, "z": 50},
    ),
    "mixture_log_ratio": Operator(
        MixtureLogRatioCase,
        {"b": 64, "k": 16, "m": 4, "z": 50},
        {"B": _FEWER, "K": _FEWER, "M": _M, "Z": _Z},
        {"b": 100, "k": 50, "m": 10, "z": 50},
    ),
    "log_weights": Operator(
        LogWeightsCase,
        {"b": 64, "k": 16, "d": 784},
        {"B": _MANY, "K": _FEWER, "D": _D},
        {"b": 100, "k": 50, "d": 784},
        (*FLOATS, "bfloat16", "float16"),
    ),
    "iwae_loss": Operator(
        lambda k, **sizes: IWAELossCase(k, True, **sizes),
        {"b": 64, "k": 16, "d": 784},
        {"B": _MANY, "K": _FEWER, "D": _D},
        {"b": 100, "k": 50, "d": 784},
        (*FLOATS, "bfloat16", "float16"),
    ),
    "logmeanexp": Operator(
        LogMeanExpCase,
        {"b": 64, "k": 512},
        {"B": _MANY, "K": (8, 32, 128, 512, 2048, 8192)},
        {"b": 100, "k": 5000},
    ),
    "linear_log_weights": Operator(
        LinearLogWeightsCase,
        {"b": 8, "k": 64, "d": 784},
        {"B": _FEWER, "K": _MANY, "D": _D},
        {"b": 10, "k": 500, "d": 784},
        FLOATS,
    ),
    "training step": Operator(
        TrainingCase,
        {"b": 64, "k": 4, "d": 784, "z": 50, "m": 1},
        {"B": _FEWER, "K": (1, 4, 16, 64), "D": (49, 196, 784, 3136), "Z": _Z, "M": (1, 2, 4, 8)},
        {"b": 100, "k": 5, "d": 784, "z": 50, "m": 1},
        unit="kFLOP",
    ),
}


def values(operator: str, axis: str) -> tuple[Any, ...]:
    """Where an axis is measured."""
    if axis == "threads":
        return THREAD_COUNTS if THREADS > 1 else ()
    return OPERATORS[operator].dtypes if axis == "dtype" else OPERATORS[operator].axes[axis]


def case_of(operator: str, axis: str, value: Any) -> Case:
    """The case of one point."""
    kind = OPERATORS[operator]
    if axis == "threads":
        return kind.make(**kind.large)
    if axis == "dtype":
        return kind.make(**kind.large, dtype=getattr(torch, value))
    return kind.make(**(kind.base | {axis.lower(): value}))


def groups() -> list[tuple[str, str]]:
    """Every operator's axes."""
    return [
        (name, axis)
        for name, kind in OPERATORS.items()
        for axis in (*kind.axes, *CONDITIONS)
        if values(name, axis)
    ]


class GrowthCase(Case):
    """One axis of one operator; a rival is "ours, K=16", a case of its own at that size."""

    def __init__(self, operator: str, axis: str) -> None:
        self.operator, self.axis = operator, axis
        self.group = f"growth, {operator} over {axis}"
        self.cases: dict[Any, Case] = {}

    def build(self, rival: str) -> Rival:
        who, value = self._parse(rival)
        if value not in self.cases:
            self.cases[value] = case_of(self.operator, self.axis, value)
        case = self.cases[value]
        built = case.build(who)
        built.case, built.variant = case, built.variant if who != "ours" else ""
        if isinstance(case, TrainingCase):
            # Its formula and gradient were held to the plain ones where it was made.
            built.result = lambda: None
        built.extra = {
            "operator": self.operator,
            "axis": self.axis,
            "value": value,
            "who": who,
            "unit": OPERATORS[self.operator].unit,
        }
        if self.axis == "threads":
            built.threads = value
        return built

    def check(self, rival: str, result: Any) -> None:
        who, value = self._parse(rival)
        if result is not None:
            self.cases[value].check(who, result)

    def _parse(self, rival: str) -> tuple[str, Any]:
        who, _, place = rival.partition(", ")
        return who, {str(v): v for v in values(self.operator, self.axis)}[place.partition("=")[2]]


def rivals_at(operator: str, axis: str, value: Any) -> tuple[str, ...]:
    """Ours alone in half precision: eager sums there in the half type, and is wrong by nats."""
    return ("ours",) if value in ("bfloat16", "float16") else ("ours", "eager")


def points() -> list[Any]:
    """((operator, axis), rival) of every point, for pytest."""
    return [
        pytest.param((name, axis), f"{who}, {axis}={value}", id=f"{name}, {who}, {axis}={value}")
        for name, axis in groups()
        for value in values(name, axis)
        for who in rivals_at(name, axis, value)
    ]


@pytest.mark.parametrize(("where", "rival"), points())
def bench_growth(
    benchmark: Any, measure: Measure, where: tuple[str, str], rival: str, turn: int
) -> None:
    measure(benchmark, lambda: GrowthCase(*where), ("growth", where), rival)
