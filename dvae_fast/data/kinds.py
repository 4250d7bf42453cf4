"""What values are: binary, grey, 256 levels, real or counts; and what suits and fits them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dvae_fast._checks import check_choice
from dvae_fast.likelihoods import NAMED, Link, get_likelihood

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BINARY",
    "COUNTS",
    "GREY",
    "KINDS",
    "LEVELS",
    "REAL",
    "Kind",
    "Look",
    "fitting",
    "kind_of",
    "misfit",
]


@dataclass(frozen=True)
class Kind:
    """A kind of values, as a model sees them.

    Attributes:
        label: in messages.
        interval, step: closed interval of the values, and what they are multiples of (0: nothing).
        likelihood, encoder: what suits them.
    """

    label: str
    interval: tuple[float, float]
    step: float
    likelihood: str
    encoder: str = "mlp"

    @property
    def is_unit(self) -> bool:
        """Whether values lie in [0, 1], and so are probabilities and shades of grey."""
        return self.interval == (0.0, 1.0)


KINDS = {
    "binary": Kind("binary values", (0.0, 1.0), 1.0, "bernoulli"),
    "grey": Kind("grey values in [0, 1]", (0.0, 1.0), 0.0, "gaussian"),
    "8bit": Kind("256 levels", (0.0, 1.0), 1 / 255, "discretised_logistic"),
    "real": Kind("real numbers", (-math.inf, math.inf), 0.0, "gaussian_real"),
    "counts": Kind("counts", (0.0, math.inf), 1.0, "negative_binomial", "mlp_log1p"),
}
BINARY, GREY, LEVELS, REAL, COUNTS = KINDS
#: float32 holds whole numbers to this one exactly
_MOST_COUNT = 2**24


def misfit(kind: Kind, likelihood: str) -> str | None:
    """Why values of that kind have no density by the likelihood; None if they have one."""
    model, (low, high) = get_likelihood(likelihood), kind.interval
    lower, upper = model.interval
    if model.step == 1 and kind.is_unit:
        return f"it is of counts, and the data are {kind.label}"
    if low < lower or high > upper:
        return f"its values lie in [{lower:g}, {upper:g}], and the data are {kind.label}"
    if model.step and (kind.step == 0 or (model.step < 1) != (kind.step < 1)):
        unit = "whole numbers" if model.step == 1 else "one of 256 grey levels"
        return f"its values are {unit}, and the data are {kind.label}"
    mean = model.params.get("mean")
    if isinstance(mean, Link) and (low < mean.interval[0] or high > mean.interval[1]):
        lower, upper = mean.interval
        return f"its mean lies in [{lower:g}, {upper:g}], and the data are {kind.label}"
    return None


def fitting(kind: Kind) -> list[str]:
    """The likelihoods that values of that kind may have."""
    return [name for name in NAMED if misfit(kind, name) is None]


# --- looking --------------------------------------------------------------------------------------


class Look:
    """What has been seen of values, block by block.

    Attributes:
        low, high: the least and the largest.
        whole: all are whole numbers.
        levels: all lie in [0, 1] and are multiples of 1/255.
        ends: all are one of the two that a byte begins and ends with, 0 and 255.
        bad: (row, place in the row, value) of the first that is NaN or infinite, and how many.
        seen, unknown: how many there are, and how many are NaN: not bad with `missing`.
        counts: of how many training examples each value is known, or one number for all.
        mean, variance: of each value of a training example, float64 (D,); 0 of those never known.
    """

    def __init__(self, dtype: np.dtype[Any], *, real: bool = False, missing: bool = False) -> None:
        self.dtype = dtype
        self._missing = missing and dtype.kind == "f"
        # Of whole numbers no variance is asked for, unless they are said to be real.
        self._spreads = real or dtype.kind in "fi"
        self.low, self.high = math.inf, -math.inf
        self.whole = self.levels = self.ends = True
        self.bad: tuple[int, int, float] | None = None
        self.bad_count = 0
        self.lowest: tuple[int, int] = (0, 0)
        self.seen = self.unknown = 0
        self.counts: Any = 0
        self._mean: NDArray[np.float64] | None = None
        self._squares: NDArray[np.float64] | None = None
        self._hash = hashlib.sha256()

    def hash(self, *parts: Any) -> None:
        """Let the fingerprint depend on it."""
        for part in parts:
            data = np.ascontiguousarray(part) if isinstance(part, np.ndarray) else str(part)
            # A length before each, so that no two lists of parts are one text.
            raw = data.tobytes() if isinstance(data, np.ndarray) else data.encode()
            self._hash.update(f"{len(raw)}:".encode())
            self._hash.update(raw)

    @property
    def fingerprint(self) -> str:
        return self._hash.hexdigest()[:32]

    def see(self, first: int, block: NDArray[Any], training: NDArray[np.bool_] | slice) -> None:
        """The next rows, (n, *shape), from the one called `first` on; which of them train."""
        rows = block.reshape(len(block), -1)
        if not rows.size:
            return
        known = ~np.isnan(rows) if self._missing else None
        values = rows if known is None else rows[known]
        self.seen += rows.size
        self.unknown += rows.size - values.size
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            at = np.argwhere(np.isinf(rows) if self._missing else ~np.isfinite(rows))
            if self.bad is None:
                row, place = at[0].tolist()
                self.bad = first + row, place, float(rows[row, place])
            self.bad_count += len(at)
            return
        if low < self.low:
            self.low = low
            row, place = divmod(int(np.nanargmin(rows)), rows.shape[1])
            self.lowest = first + row, place
        self.high = max(self.high, high)
        if rows.dtype.kind == "f":
            self.whole = self.whole and bool((values == np.floor(values)).all())
            self.levels = self.levels and self.low >= 0 and self.high <= 1 and _on_levels(values)
        self.ends = self.ends and self.whole and self.high in (0, 255) and _at_ends(values)
        self._sum(rows[training], None if known is None else known[training])

    @np.errstate(over="ignore", invalid="ignore")  # who asks for what is infinite refuses it
    def _sum(self, rows: NDArray[Any], known: NDArray[np.bool_] | None) -> None:
        """Chan, Golub and LeVeque's update of mean and squares by a block."""
        if not len(rows):
            return
        m: Any = len(rows)
        if known is None:
            mean = rows.mean(0, dtype=np.float64)
            squares = np.square(rows - mean).sum(0) if self._spreads else np.zeros_like(mean)
        else:
            m = known.sum(0)
            mean = np.where(known, rows, 0).sum(0, dtype=np.float64) / np.maximum(m, 1)
            squares = np.square(np.where(known, rows - mean, 0)).sum(0)
        if self._mean is None or self._squares is None:
            self.counts, self._mean, self._squares = m, mean, squares
            return
        n = self.counts
        step, total = mean - self._mean, np.maximum(n + m, 1)
        self._mean = self._mean + step * (m / total)
        self._squares = self._squares + squares + np.square(step) * (n * m / total)
        self.counts = n + m

    @property
    def mean(self) -> NDArray[np.float64]:
        assert self._mean is not None
        return self._mean

    @property
    def variance(self) -> NDArray[np.float64]:
        assert self._squares is not None
        variance: NDArray[np.float64] = self._squares / np.maximum(self.counts, 1)
        return variance

    @property
    def is_byte(self) -> bool:
        return self.dtype == np.uint8


def _on_levels(rows: NDArray[Any]) -> bool:
    steps = rows * np.float64(255)
    return bool((np.abs(steps - np.round(steps)) <= 1e-3).all())


def _at_ends(rows: NDArray[Any]) -> bool:
    return bool(((rows == 0) | (rows == 255)).all())


# --- deciding -------------------------------------------------------------------------------------


def kind_of(look: Look, shape: tuple[int, ...], given: str | None = None) -> tuple[str, float]:
    """(name of the kind, what values are to be divided by) of what has been seen.

    Args:
        look: all of it.
        shape: of an example.
        given: the kind that the user says they are.

    Raises:
        ValueError: if they are not of that kind, or it is not clear of which they are; the message
            begins with what values must be.
    """
    low, high, whole = look.low, look.high, look.whole
    if given is not None:
        check_choice("values", given, KINDS)
        return given, _divisor(look, given)
    if whole and low >= 0 and high <= 1:
        return BINARY, 1.0
    if look.ends and look.is_byte:
        return BINARY, 255.0
    if whole and low < 0:
        raise ValueError(
            f"whole numbers must be counts, >= 0, or said to be real numbers (values real); the "
            f"least is {low:g}"
        )
    # Of a table that is no picture: 255 where it is the largest of many columns is no accident.
    picture = len(shape) > 1
    if whole and high <= 255 and (look.is_byte or picture or high == 255):
        return LEVELS, 255.0
    if whole:
        return COUNTS, _divisor(look, COUNTS)
    if low >= 0 and high <= 1:
        return (LEVELS if look.levels else GREY), 1.0
    return REAL, 1.0


def _divisor(look: Look, name: str) -> float:
    """What to divide by, where the user says what values are."""
    low, high, whole = look.low, look.high, look.whole
    got = f"got {'whole numbers' if whole else 'values'} from {low:g} to {high:g}"
    if name == REAL:
        return 1.0
    if name == COUNTS:
        if not whole or low < 0:
            raise ValueError(f"counts must be whole numbers >= 0, {got}")
        if high > _MOST_COUNT:
            raise ValueError(f"counts must be at most 2**24, which float32 holds, {got}")
        return 1.0
    if name == BINARY:
        if whole and low >= 0 and high <= 1:
            return 1.0
        if look.ends:
            return 255.0
        raise ValueError(f"binary values must be 0 and 1, or 0 and 255, {got}")
    if whole and low >= 0 and 1 < high <= 255:
        return 255.0
    if name == LEVELS and not look.levels:
        raise ValueError(
            f"256 levels must be whole numbers from 0 to 255, or those over 255, {got}"
        )
    if low < 0 or high > 1:
        raise ValueError(f"grey values must lie in [0, 1], or be whole numbers to 255, {got}")
    return 1.0
