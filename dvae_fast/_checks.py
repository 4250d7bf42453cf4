"""Checks of arguments: the error names the argument, the rule and the actual value."""

from __future__ import annotations

import difflib
import math
import operator
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "check_bool",
    "check_choice",
    "check_count",
    "check_dense",
    "check_device",
    "check_float",
    "check_index",
    "check_integer",
    "check_is_mask",
    "check_mask_of",
    "check_same",
    "check_shape",
    "check_size",
    "check_sizes",
    "check_total",
    "is_number",
    "nearest_choice",
    "set_validation",
    "values_are_checked",
]

_FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))

_MOST = 2**59  # times 8 bytes, an index is signed and has 64 bits

_validate = os.environ.get("DVAE_FAST_VALIDATE", "0") not in ("", "0")


def set_validation(enabled: bool) -> bool:
    """Switch checks that read whole tensors (support of x, positive scales); returns the old value.

    Off by default, because a look at the values costs a pass, and on a GPU a synchronisation.
    The environment variable ``DVAE_FAST_VALIDATE=1`` switches them on at import.
    """
    global _validate
    old, _validate = _validate, bool(enabled)
    return old


def check_dense(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.is_nested:
        raise ValueError(f"{name} must be a dense tensor, got a nested one; pad or stack it")
    if t.layout is not torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got {t.layout}; give {name}.to_dense()")


def check_float(name: str, t: Tensor) -> None:
    check_dense(name, t)
    if t.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {t.dtype}")


def check_same(name: str, t: Tensor, other_name: str, other: Tensor) -> None:
    """Same device for any two; the callers compare shapes and dtypes, which differ by argument."""
    if t.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {t.device}"
        )


def check_shape(name: str, t: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    if tuple(t.shape) != shape:
        raise ValueError(f"{name} must have shape {meaning} = {shape}, got {tuple(t.shape)}")


def check_is_mask(mask: Any) -> None:
    """Raise TypeError unless it is a dense tensor of bools."""
    check_dense("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, True where x was observed, got {mask.dtype}")


def check_mask_of(mask: Any, x: Tensor) -> Tensor:
    """`mask` if it is bool, of x's shape and on x's device.

    Raises:
        TypeError, ValueError: naming the rule and the value.
    """
    check_is_mask(mask)
    if mask.shape != x.shape:
        raise ValueError(f"mask must have x's shape, {tuple(x.shape)}, got {tuple(mask.shape)}")
    check_same("mask", mask, "x", x)
    checked: Tensor = mask
    return checked


def check_count(name: str, value: int, lower: int) -> None:
    if not isinstance(value, (int, torch.SymInt, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < lower:
        raise ValueError(f"{name} must be >= {lower}, got {value}")


def check_bool(name: str, value: Any) -> bool:
    """`value` as a plain bool, which can be written to JSON; NumPy's will do."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return bool(value)


def is_number(value: Any) -> bool:
    """Whether it is a real number, one of NumPy's too."""
    kinds = (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _plain(value: Any) -> int:
    """NumPy's integers compute in their own few bits."""
    return int(value) if isinstance(value, np.integer) else value


def check_index(name: str, value: int, count: int) -> None:
    """The first of `count` indices in the noise, each one 32-bit word of the counter."""
    if type(value) is type(count) is int and 0 <= value <= 2**31 and count <= 2**31:
        return  # of nearly all calls, at once
    check_count(name, value, 0)
    value, count = _plain(value), _plain(count)
    if count > 2**32:
        what = name.removeprefix("first_").replace("copy", "copie")
        raise ValueError(f"a call must draw at most 2**32 {what}s, got {count}")
    drawn = max(count, 1)
    if value > 2**32 - drawn:
        raise ValueError(f"{name} must be <= 2**32 − {drawn}, the number drawn; got {value}")


def check_total(name: str, *sizes: int) -> None:
    """Raise ValueError where numbers of such sizes, one of which may be 0, have no index."""
    if torch.compiler.is_compiling():
        return
    for n in sizes:
        if type(n) is not int:
            break
    else:
        if 0 < math.prod(sizes) <= _MOST:
            return  # of nearly all calls, at once
    if math.prod(max(_plain(n), 1) for n in sizes) > _MOST:
        raise ValueError(f"{name} must hold at most 2**59 numbers, got shape {sizes}")


def values_are_checked() -> bool:
    """Whether values are to be checked and can be: nothing may wait for a graph being captured."""
    return (
        _validate
        and not torch.compiler.is_compiling()
        and not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


# Of 64 bits with a sign: sys.maxsize is a way to say that there is no limit.
_LARGEST = 2**63 - 1


def check_size(name: str, value: Any, least: int = 1, most: int = _LARGEST) -> int:
    """`value` if it is an int from `least` to `most`, else TypeError or ValueError naming the
    argument."""
    if isinstance(value, (bool, Tensor, np.ndarray)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be <= {most:,}, got {value}")
    return operator.index(value)


def check_sizes(name: str, values: Any) -> tuple[int, ...]:
    """`values` as a tuple if it is a sequence of ints >= 1, else an error naming the argument."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a sequence of ints, got {values!r}")
    return tuple(check_size(f"{name}[{i}]", value) for i, value in enumerate(values))


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of the names in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(nearest_choice(name, value, choices))


def nearest_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """What to say of a wrong name: the valid ones, nearest first."""
    valid = list(choices)
    near = difflib.get_close_matches(str(value), valid, n=max(len(valid), 1))
    names = ", ".join([*near, *(choice for choice in valid if choice not in near)])
    guess = f"; did you mean {near[0]!r}?" if near else ""
    got = repr(value) if isinstance(value, str) else _in_a_line(value)
    return f"{name} must be one of {names}; got {got}{guess}"


def _in_a_line(value: Any) -> str:
    shown = repr(value)
    return type(value).__name__ if "\n" in shown or len(shown) > 200 else shown


def check_device(name: str, value: Any, *, here: bool = True) -> None:
    """Raise ValueError unless `value` is ``cpu``, ``cuda`` or ``cuda:N``, and there if `here`."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be cpu, cuda or cuda:N, got {value!r}")
    if here and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"{name} must be one that torch sees ({torch.cuda.device_count()} GPUs), got {value!r}"
        )


def check_integer(name: str, value: Any, lower: int, upper: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not lower <= value < upper:
        rule = f">= {lower}" if upper == math.inf else f"from {lower} to {upper - 1}"
        raise ValueError(f"{name} must be an integer {rule}, got {value!r}")
