"""Which cases of the table a check runs: as many as fit into some seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dvae_fast.checking.cases import OPERATORS, sample_inputs
from dvae_fast.checking.many import many_samples
from dvae_fast.checking.operands import (
    DTYPES,
    LARGE,
    NO_EXAMPLES,
    ONE_SAMPLE,
    TINY_LATENT,
    Maker,
    Sample,
    named,
)
from dvae_fast.checking.special import special_samples
from dvae_fast.corruptions import BitFlip, FusedCorruption, Masking, SaltAndPepper
from dvae_fast.ops import CPU_ONLY

if TYPE_CHECKING:
    from collections.abc import Iterable

_MASKS = (Masking, BitFlip, SaltAndPepper)


def samples(
    device: str, *, small: bool = False, operators: Iterable[str] = OPERATORS
) -> list[Sample]:
    """float32 has the whole table; the other dtypes rows of whole packs, no examples, a small size,
    and bfloat16 a large one, in two layouts. Each has its special numbers and, on a GPU, calls that
    are large for it.

    `small`: float32 and bfloat16, a small size, no examples and one layout.
    """
    out = []
    for op in operators:
        if op in CPU_ONLY and torch.device(device).type != "cpu":
            continue
        for dtype in (torch.float32, torch.bfloat16) if small else DTYPES:
            every = sample_inputs(op, dtype, device)
            if small:
                keep = [
                    s
                    for s in every
                    if s.layout in ("contiguous", "strided")
                    and s.label.startswith((named(TINY_LATENT), named(NO_EXAMPLES)))
                ]
            elif dtype == torch.float32:
                keep = every
            else:
                sizes = [ONE_SAMPLE, TINY_LATENT, NO_EXAMPLES]
                # Most of the time is the reference's, at the large size.
                names = tuple(map(named, sizes + [LARGE] * (dtype == torch.bfloat16)))
                layouts = ("contiguous", "strided")
                keep = [s for s in every if s.label.startswith(names) and s.layout in layouts]
            out += [*keep, *special_samples(op, dtype, device)]
            if torch.device(device).type == "cuda" and not small:
                count = torch.cuda.get_device_properties(device).multi_processor_count
                out += many_samples(op, dtype, device, count)
        if op == "corrupt":
            out += list(_masks(device, small))
    return out


def _masks(device: str, small: bool) -> Iterable[Sample]:
    """Every discrete corruption at many sizes: the noise's own bits, through thresholds."""
    for d in (1, 65) if small else (1, 15, 16, 63, 64, 65, 785):
        for kind in _MASKS:
            for seed in (-1,) if small else (0, -1, 2**40 + 3):

                def build(
                    make: Maker, d: int = d, kind: type[FusedCorruption] = kind, seed: int = seed
                ) -> tuple[Any, ...]:
                    rate, salt = (
                        torch.linspace(*ends, d, dtype=torch.float32).to(make.device)
                        for ends in ((0.001, 0.999), (0.9, 0.1))
                    )
                    return (
                        torch.full((5, d), 0.25, dtype=torch.float32, device=make.device),
                        kind.kind,
                        rate,
                        salt if kind.salted else None,
                        make.seed(seed, 1),
                        3,
                        2,
                        1,
                    )

                label = f"{kind.kind}-D{d}-seed{seed}"
                yield Sample("corrupt", label, torch.float32, device, "contiguous", build)


def for_graphs(every: Iterable[Sample]) -> list[Sample]:
    """One case of each operator and dtype, of each likelihood or kind of corruption, that has
    elements and lies in order."""
    chosen: dict[tuple[Any, ...], Sample] = {}
    for sample in every:
        if sample.layout != "contiguous" or sample.label.startswith(named(NO_EXAMPLES)):
            continue
        words = tuple(a for a in sample.args() if isinstance(a, str))
        chosen.setdefault((sample.op, sample.dtype, words), sample)
    return list(chosen.values())


def with_other_values(sample: Sample) -> Sample:
    """The same shapes, other numbers."""
    return replace(sample, label=f"{sample.label}-again")
