"""Build information, the instruction set in use, and the core math over NumPy arrays.

Arrays must have exactly the dtype given: nothing is converted. Shapes are kept, copies are made.
TypeError and ValueError name the argument, the rule and what was given.
"""

from typing import Any, Literal, SupportsIndex, TypeAlias, TypedDict, TypeVar, overload

import numpy as np
import numpy.typing as npt

_Float32: TypeAlias = npt.NDArray[np.float32]
_Float64: TypeAlias = npt.NDArray[np.float64]
_Int32: TypeAlias = npt.NDArray[np.int32]
_UInt16: TypeAlias = npt.NDArray[np.uint16]
_UInt32: TypeAlias = npt.NDArray[np.uint32]
_A = TypeVar("_A", _Float32, _Float64)

class _Build(TypedDict):
    compiler: str
    cxx_standard: int

compiler: str
build: _Build

def isas() -> list[str]: ...
def isa() -> str: ...

# Noise. A stream has 8 bits, a copy 24, an example and a sample 32, a seed 64 (signed).
def philox(counter: _UInt32, seed: SupportsIndex) -> _UInt32: ...
def uniform_bits(
    stream: SupportsIndex,
    copy: SupportsIndex,
    example: SupportsIndex,
    sample: SupportsIndex,
    size: SupportsIndex,
    seed: SupportsIndex,
) -> _UInt32: ...
@overload
def standard_normal(
    stream: SupportsIndex,
    copy: SupportsIndex,
    example: SupportsIndex,
    sample: SupportsIndex,
    size: SupportsIndex,
    seed: SupportsIndex,
    dtype: Literal["float32"] = "float32",
) -> _Float32: ...
@overload
def standard_normal(
    stream: SupportsIndex,
    copy: SupportsIndex,
    example: SupportsIndex,
    sample: SupportsIndex,
    size: SupportsIndex,
    seed: SupportsIndex,
    dtype: Literal["float64"],
) -> _Float64: ...
@overload
def standard_normal(
    stream: SupportsIndex,
    copy: SupportsIndex,
    example: SupportsIndex,
    sample: SupportsIndex,
    size: SupportsIndex,
    seed: SupportsIndex,
    dtype: npt.DTypeLike,
) -> npt.NDArray[Any]: ...
def uniform24(words: _UInt32) -> _Int32: ...
def threshold(p: _Float32) -> _Int32: ...

# Functions of one element.
def exp(x: _A) -> _A: ...
def exp_nonpositive(x: _A) -> _A: ...
def log(x: _A) -> _A: ...
def log1p(x: _A) -> _A: ...
def softplus(x: _A) -> _A: ...
def sigmoid(x: _A) -> _A: ...
@overload
def sincos_turn(v: _UInt32, dtype: Literal["float32"] = "float32") -> tuple[_Float32, _Float32]: ...
@overload
def sincos_turn(v: _UInt32, dtype: Literal["float64"]) -> tuple[_Float64, _Float64]: ...
@overload
def sincos_turn(v: _UInt32, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]: ...
def log_uniform(words: _UInt32) -> _Float32: ...

# 16-bit floats, as their bits.
def half_to_float(bits: _UInt16) -> _Float32: ...
def bfloat16_to_float(bits: _UInt16) -> _Float32: ...
def float_to_half(x: _Float32) -> _UInt16: ...
def float_to_bfloat16(x: _Float32) -> _UInt16: ...

# Log-densities in nats and their derivatives, per element.
def bernoulli(logits: _A, x: _A) -> tuple[_A, _A]: ...
def gaussian(mean: _A, scale: _A, x: _A) -> tuple[_A, _A, _A]: ...
def discretised_logistic(mean: _A, scale: _A, x: _A) -> tuple[_A, _A, _A]: ...
def negative_binomial(mean: _A, scale: _A, x: _A) -> tuple[_A, _A, _A]: ...

# States (..., 5): max m, Σ e^(w − m), Σ e^2(w − m), Σ w, count.
def logsumexp_push(state: _Float64, log_w: _Float64) -> _Float64: ...
def logsumexp_merge(a: _Float64, b: _Float64) -> _Float64: ...
