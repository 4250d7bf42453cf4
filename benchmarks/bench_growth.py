"""How cost grows: each operator and the training step over one size at a time, threads and dtypes.

Each axis of an operator is one group, whose rivals are ours and plain eager PyTorch at every value,
so that they take turns like any others. Run with ``--choose=0``: eager PyTorch is then the first of
its formulas everywhere, not the fastest at each size. `growth.py` reads the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from bench_operators import (
    LATENT,
    CorruptCase,
    IWAELossCase,
    LinearLogWeightsCase,
    LogWeightsCase,
)
from bench_training import TrainingCase
from cases import THREADS, Case, Rival
from growth import CONDITIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Measure

FLOATS = ("float32", "float64")
HALVES = ("bfloat16", "float16")
THREAD_COUNTS = tuple(sorted({1, *(2**i for i in range(1, 10) if 2**i < THREADS), THREADS}))


class Operator(NamedTuple):
    """`make(**sizes)` is its case; an axis varies one of the `base` sizes.

    `large` are the sizes of the axes threads and dtype, where calls should be long.
    """

    make: Callable[..., Case]
    base: dict[str, int]
    axes: dict[str, tuple[int, ...]]
    large: dict[str, int]
    dtypes: tuple[str, ...] = ()


_MANY = (1, 4, 16, 64, 256, 1024)
_FEWER, _D, _Z = _MANY[:-1], (12, 49, 196, 784, 3136), (2, 8, 32, 128, 512)
_M = (1, 2, 4, 8, 16, 32)
_LATENT, _LARGE_LATENT = {"b": 64, "k": 16, "z": 50}, {"b": 100, "k": 50, "z": 50}
_LATENT_AXES = {"B": _MANY, "K": _MANY, "Z": _Z}
_DECODER, _LARGE_DECODER = {"b": 64, "k": 16, "d": 784}, {"b": 100, "k": 50, "d": 784}
_DECODER_AXES = {"B": _MANY, "K": _FEWER, "D": _D}

OPERATORS: dict[str, Operator] = {
    "corrupt": Operator(
        CorruptCase,
        {"b": 64, "m": 4, "d": 784},
        {"B": _MANY, "M": _M, "D": _D},
        {"b": 100, "m": 10, "d": 784},
    ),
    "sample_latent": Operator(
        LATENT["sample_latent"], _LATENT, _LATENT_AXES, _LARGE_LATENT, FLOATS
    ),
    "latent_log_ratio": Operator(LATENT["latent_log_ratio"], _LATENT, _LATENT_AXES, _LARGE_LATENT),
    "mixture_log_ratio": Operator(
        LATENT["mixture_log_ratio"],
        _LATENT | {"m": 4},
        {"B": _FEWER, "K": _FEWER, "M": _M, "Z": _Z},
        _LARGE_LATENT | {"m": 10},
    ),
    "log_weights": Operator(
        LogWeightsCase, _DECODER, _DECODER_AXES, _LARGE_DECODER, (*FLOATS, *HALVES)
    ),
    "iwae_loss": Operator(
        IWAELossCase, _DECODER, _DECODER_AXES, _LARGE_DECODER, (*FLOATS, *HALVES)
    ),
    "logmeanexp": Operator(
        LATENT["logmeanexp"],
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
    ),
}


class Axis(NamedTuple):
    """One operator over one axis, in a group of its own."""

    operator: str
    name: str

    @property
    def values(self) -> tuple[Any, ...]:
        """Where it is measured."""
        kind = OPERATORS[self.operator]
        if self.name == "threads":
            return THREAD_COUNTS if THREADS > 1 else ()
        return kind.dtypes if self.name == "dtype" else kind.axes[self.name]

    def case(self, value: Any) -> Case:
        """The case of one point."""
        kind = OPERATORS[self.operator]
        if self.name == "threads":
            return kind.make(**kind.large)
        if self.name == "dtype":
            return kind.make(**kind.large, dtype=getattr(torch, value))
        return kind.make(**(kind.base | {self.name.lower(): value}))

    def points(self) -> dict[str, tuple[str, Any]]:
        """Who is measured at what value, by the name of the rival: "ours, K=16".

        Ours alone in half precision: eager sums there in the half type, and is wrong by nats.
        """
        return {
            f"{who}, {self.name}={value}": (who, value)
            for value in self.values
            for who in (("ours",) if value in HALVES else ("ours", "eager"))
        }


AXES = [
    Axis(operator, name)
    for operator in OPERATORS
    for name in (*OPERATORS[operator].axes, *CONDITIONS)
]


class GrowthCase(Case):
    """One axis of one operator; each rival has a case of its own at its size."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis
        self.group = f"growth, {axis.operator} over {axis.name}"
        self.cases: dict[Any, Case] = {}

    def build(self, rival: str) -> Rival:
        who, value = self.axis.points()[rival]
        if value not in self.cases:
            self.cases[value] = self.axis.case(value)
        built = self.cases[value].build(who)
        built.case, built.variant = self.cases[value], built.variant if who != "ours" else ""
        # A unit of work: where layers of other sizes share it, a thousand of their operations.
        unit = "kFLOP" if self.axis.operator == "training step" else "element"
        where = {"operator": self.axis.operator, "axis": self.axis.name, "value": value}
        built.extra = {**where, "who": who, "unit": unit}
        if self.axis.name == "threads":
            built.threads = value
        return built

    def verify(self, rival: str, built: Rival) -> None:
        """A training step's formula and gradient were held to the plain ones where it was made."""
        if not isinstance(built.case, TrainingCase):
            built.case.verify(built.extra["who"], built)


def points() -> list[Any]:
    """An axis and a rival for every point, for pytest."""
    return [
        pytest.param(axis, name, id=f"{axis.operator}, {name}")
        for axis in AXES
        for name in axis.points()
    ]


@pytest.mark.parametrize(("axis", "rival"), points())
def bench_growth(measure: Measure, axis: Axis) -> None:
    measure(lambda: GrowthCase(axis))
