"""Calls so large that a GPU shares them out otherwise than small ones: the launchers choose
by its number of multiprocessors, and what large calls run would go unchecked without these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dvae_fast.checking.cases import decoder_arguments
from dvae_fast.checking.likelihoods import LIKELIHOODS
from dvae_fast.checking.operands import Maker, Sample, Sizes
from dvae_fast.corruptions import AdditiveGaussian, FusedCorruption, Masking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Build = Callable[[Maker], tuple[Any, ...]]

#: How the labels of these cases begin.
MANY = "many"
#: Samples of a row: no multiple of the four that log_weights takes together, yet near one.
_K = 23
#: Elements of a row: whole packs of 16 bytes in every dtype.
_D = 24


def _rows(multiprocessors: int) -> Sizes:
    """Above the 256 rows a multiprocessor from which log_weights.cuh takes four rows a team, and
    the 128 from which latent.cu takes several samples a team."""
    return Sizes(m=2, b=-(-300 * multiprocessors // (2 * _K)), k=_K, z=5, d=_D)


def _builds(op: str, multiprocessors: int) -> Iterator[tuple[str, Build]]:
    s = _rows(multiprocessors)
    if op == "log_weights":
        for likelihood, row in LIKELIHOODS.items():
            kind = "full" if row.cheap else "per-pixel"
            kind = "no-scale" if row.scale is None else kind

            def of(make: Maker, of: tuple[str, str] = (likelihood, kind)) -> tuple[Any, ...]:
                return (*decoder_arguments(make, s, *of), of[0])

            yield f"{likelihood}-{kind}", of
    elif op == "linear_log_weights":

        def layer(make: Maker) -> tuple[Any, ...]:
            _, scale, x, log_ratio = decoder_arguments(make, s, "bernoulli", "no-scale")
            hidden, weight = make.normal(s.m * s.b, s.k, s.z), make.normal(s.d, s.z)
            return hidden, weight, make.normal(s.d), scale, x, log_ratio, "bernoulli"

        yield "bernoulli", layer
    elif op == "sample_latent":

        def drawn(make: Maker) -> tuple[Any, ...]:
            mean, log_var = (make.normal(s.m, s.b, s.z) for _ in range(2))
            return mean, log_var, s.k, make.seed(11), 5, 3

        yield "drawn", drawn
    elif op == "latent_log_ratio":

        def given(make: Maker) -> tuple[Any, ...]:
            n = s.m * s.b
            return make.normal(n, s.k, s.z), make.normal(n, s.z), make.normal(n, s.z)

        yield "given", given
    elif op == "corrupt":
        for corruption in (Masking, AdditiveGaussian):

            def copied(make: Maker, of: type[FusedCorruption] = corruption) -> tuple[Any, ...]:
                level = torch.full((), 0.3, dtype=make.sums, device=make.device)
                level = level if of.additive else level.float()
                # Above the 16 copies a multiprocessor from which a thread makes several of them.
                copies = 16 * multiprocessors + 9
                return make.uniform(1, 65), of.kind, level, None, make.seed(-3, 1), copies, 5, 2

            yield corruption.kind, copied


def many_samples(
    op: str, dtype: torch.dtype, device: str, multiprocessors: int
) -> Iterator[Sample]:
    """Those of `op` on a GPU with so many multiprocessors; of a dtype for each width of a pack, for
    the reference takes a second for some."""
    if dtype in (torch.float32, torch.bfloat16):
        for name, build in _builds(op, multiprocessors):
            yield Sample(op, f"{MANY}-{name}", dtype, device, "contiguous", build)
