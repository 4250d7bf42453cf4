"""How cost grows: each operator and the training step over one size at a time, threads and dtypes.

Each axis of an operator is one group, whose rivals are ours and plain eager PyTorch at every value,
so that they take turns like any others. Run with ``--choose=0``: eager PyTorch is then the first of
its formulas everywhere, not the fastest at each size. `growth.py` reads the figures.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from bench_models import TrainingCase
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
from cases import THREADS, Case, Measure, Rival, rivals_of
from growth import CONDITIONS

if TYPE_CHECKING:
    from collections.abc import Callable

FLOATS = ("float32", "float64")
HALVES = ("bfloat16", "float16")
THREAD_COUNTS = tuple(sorted({1, *(2**i for i in range(1, 10) if 2**i < THREADS), THREADS}))

VALUES = {
    "B": (1, 8, 64, 256, 1024),
    "K": (1, 8, 64, 256, 1024),
    "M": (1, 3, 10, 32),
    "Z": (2, 8, 32, 128, 512),
    "D": (12, 98, 784, 3136),
    "H": (50, 100, 200, 400, 800, 1600),
}


class Operator(NamedTuple):
    """`make(**sizes)` is its case; an axis varies one of the `base` sizes, their product at
    most `most`; `large` are the sizes of the axes threads and dtype, where calls should be long.
    """

    make: Callable[..., Case]
    base: dict[str, int]
    large: dict[str, int]
    dtypes: tuple[str, ...] = ()
    most: int = 13_000_000
    values: dict[str, tuple[int, ...]] = VALUES


_LATENT, _LARGE_LATENT = {"b": 64, "k": 16, "z": 50}, {"b": 100, "k": 50, "z": 50}
_DECODER, _LARGE_DECODER = {"b": 64, "k": 16, "d": 784}, {"b": 100, "k": 50, "d": 784}
_ALL = (*FLOATS, *HALVES)

OPERATORS = {
    "corrupt": Operator(CorruptCase, {"b": 64, "m": 4, "d": 784}, {"b": 100, "m": 10, "d": 784}),
    "sample_latent": Operator(SampleLatentCase, _LATENT, _LARGE_LATENT, FLOATS),
    "latent_log_ratio": Operator(LatentLogRatioCase, _LATENT, _LARGE_LATENT),
    "mixture_log_ratio": Operator(
        MixtureLogRatioCase, _LATENT | {"m": 4}, _LARGE_LATENT | {"m": 10}, most=3_300_000
    ),
    "log_weights": Operator(LogWeightsCase, _DECODER, _LARGE_DECODER, _ALL),
    "iwae_loss": Operator(IWAELossCase, _DECODER, _LARGE_DECODER, _ALL),
    "logmeanexp": Operator(
        LogMeanExpCase,
        {"b": 64, "k": 512},
        {"b": 100, "k": 5000},
        values=VALUES | {"K": (8, 64, 512, 2048, 8192)},
    ),
    "linear_log_weights": Operator(
        LinearLogWeightsCase, {"b": 8, "k": 64, "d": 784}, {"b": 10, "k": 500, "d": 784}, FLOATS
    ),
    "training step": Operator(
        TrainingCase,
        {"b": 64, "k": 4, "d": 784, "z": 50, "m": 1, "h": 200},
        {"b": 100, "k": 5, "d": 784, "z": 50, "m": 1, "h": 200},
        most=17_000_000_000,
        values=VALUES | {"D": VALUES["D"][1:], "M": VALUES["M"][:3]},
    ),
}


class GrowthCase(Case):
    """One operator over one axis; each rival has a case of its own at its size."""

    def __init__(self, operator: str, axis: str) -> None:
        self.operator, self.axis, self.kind = operator, axis, OPERATORS[operator]
        self.group = f"growth, {operator} over {axis}"
        self.cases: dict[Any, Case] = {}

    def values(self) -> tuple[Any, ...]:
        """Where it is measured."""
        if self.axis in CONDITIONS:
            return {"threads": THREAD_COUNTS[THREADS == 1 :], "dtype": self.kind.dtypes}[self.axis]
        base = self.kind.base
        each = math.prod(base.values()) // base[self.axis.lower()]
        return tuple(v for v in self.kind.values[self.axis] if v * each <= self.kind.most)

    def points(self) -> dict[str, tuple[str, Any]]:
        """Who is measured at what value, by the name of the rival: "ours, K=16".

        Ours alone in half precision: eager sums there in the half type, and is wrong by nats.
        """
        return {
            f"{who}, {self.axis}={value}": (who, value)
            for value in self.values()
            for who in (("ours",) if value in HALVES else ("ours", "eager"))
        }

    def case(self, value: Any) -> Case:
        if self.axis == "threads":
            return self.kind.make(**self.kind.large)
        if self.axis == "dtype":
            return self.kind.make(**self.kind.large, dtype=getattr(torch, value))
        return self.kind.make(**(self.kind.base | {self.axis.lower(): value}))

    def build(self, rival: str) -> Rival:
        who, value = self.points()[rival]
        if value not in self.cases:
            self.cases[value] = self.case(value)
        built = self.cases[value].build(who)
        built.case, built.variant = self.cases[value], built.variant if who != "ours" else ""
        # A unit of work: where layers of other sizes share it, a thousand of their operations.
        unit = "kFLOP" if self.kind.make is TrainingCase else "element"
        where = {"operator": self.operator, "axis": self.axis, "value": value}
        built.extra = {**where, "who": who, "unit": unit}
        if self.axis == "threads":
            built.threads = value
        return built

    def verify(self, rival: str, built: Rival) -> None:
        built.case.verify(built.extra["who"], built)


AXES = {
    f"{operator} over {axis}": partial(GrowthCase, operator, axis)
    for operator, kind in OPERATORS.items()
    for axis in (*(name.upper() for name in kind.base), *CONDITIONS)
}


@rivals_of({name: make().points() for name, make in AXES.items()})
def bench_growth(measure: Measure, case: str) -> None:
    measure(AXES, case)
