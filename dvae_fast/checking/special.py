"""Numbers that a chip's instructions may take in ways of their own: infinities and NaN, zeros, the
very large and the very small, and every number of 16 bits there is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dvae_fast.checking.operands import LOW_PRECISION, Maker, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Arguments = Callable[[Maker], tuple[Any, ...]]

#: -104 and below, e^x is no normal float32 any more
_NUMBERS = (
    math.inf, -math.inf, math.nan, 0.0, -0.0, 1e38, -1e38, 1e-40, -1e-40, 88.0, -88.0, -104.0,
)  # fmt: skip
#: of a Bernoulli, which takes any x
_DATA = (0.0, 1.0, 0.25, 2.0)


def _numbers() -> Tensor:
    return torch.tensor(_NUMBERS, dtype=torch.float64, device="cpu")


def _logits(make: Maker, d: int, data: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """(params, x): in the first of two samples of each example one number of `_NUMBERS`."""
    n = len(_NUMBERS) * len(data)
    params = make.raw(n, 2, d)
    params[:, 0, d // 2] = _numbers().repeat(len(data))
    x = make.raw(n, d).gt(0).double()
    x[:, d // 2] = torch.tensor(data, dtype=torch.float64, device="cpu").repeat_interleave(
        len(_NUMBERS)
    )
    return make.put(params), make.put(x, make.sums)


def _ratio(make: Maker, n: int) -> Tensor:
    return make.normal(n, 2, dtype=make.sums)


def _log_weights(make: Maker, d: int) -> tuple[Any, ...]:
    params, x = _logits(make, d, _DATA)
    return params, None, x, _ratio(make, len(x)), "bernoulli"


def _log_weights_backward(make: Maker, d: int) -> tuple[Any, ...]:
    params, x = _logits(make, d, _DATA)
    return _ratio(make, len(x)), params, None, x, "bernoulli"


def _iwae(make: Maker, d: int) -> tuple[Any, ...]:
    params, x = _logits(make, d, _DATA[:3])
    return params, None, x, _ratio(make, len(x)), "bernoulli", -1.0 / 6


def _softplus(make: Maker, d: int) -> tuple[Any, ...]:
    return (make.put(_numbers().repeat(d, 1)),)


def _logmeanexp(make: Maker, d: int) -> tuple[Any, ...]:
    log_w = make.raw(len(_NUMBERS) + 1, d)
    log_w[:-1, d // 2] = _numbers()
    log_w[-1] = -math.inf
    return (make.put(log_w, make.sums),)


def _rescale(make: Maker, d: int) -> tuple[Any, ...]:
    """Rounds: every number of 16 bits, times ⅓."""
    factor = torch.full((), 1 / 3, dtype=make.sums, device=make.device)
    if make.dtype in LOW_PRECISION:
        bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32, device="cpu").to(torch.int16)
        grad = bits.view(make.dtype).view(64, 4, 256).to(make.device)
        return (grad.clone() if d % 2 == 0 else grad.reshape(-1)[1:].view(5, 1, -1).clone()), factor
    return make.put(_numbers().repeat(2, d, 1)), factor


_BUILDERS: dict[str, Callable[[Maker, int], tuple[Any, ...]]] = {
    "log_weights": _log_weights,
    "log_weights_backward": _log_weights_backward,
    "iwae": _iwae,
    "softplus": _softplus,
    "logmeanexp": _logmeanexp,
    "rescale_": _rescale,
}


def special_samples(op: str, dtype: torch.dtype, device: str) -> Iterator[Sample]:
    """Those of `op`: of rows that are read 16 bytes at a time, and of rows that are not."""
    build = _BUILDERS.get(op)
    if build is None:
        return
    for d in (64, 65):

        def of_size(make: Maker, d: int = d) -> tuple[Any, ...]:
            return build(make, d)

        yield Sample(op, f"special-D{d}", dtype, device, "contiguous", of_size)
