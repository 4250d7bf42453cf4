"""A data set: three parts, binarised, read by index."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dvae_fast import ops as _ops  # noqa: F401  (registers the operators)
from dvae_fast._checks import check_choice
from dvae_fast._seeds import derived_key
from dvae_fast.data.examples import MISSING, Examples, Scaling, Streamed, mean_of, observed
from dvae_fast.data.kinds import BINARY, KINDS, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BINARISATIONS",
    "SPLIT",
    "SPLITS",
    "Binarisation",
    "Dataset",
    "check_missing",
    "evenly_spaced",
    "fixed_draw",
    "with_channels",
]

SPLITS = ("train", "valid", "test")
#: shares of the three, of data without parts of their own
SPLIT = "0.8,0.1,0.1"


@dataclass(frozen=True)
class Binarisation:
    """A way to make grey values binary, and what messages call the data.

    Attributes:
        anew: drawn anew in every epoch; drawn once for validation and test.
        once: drawn once, when the data are loaded.
        published: drawn by others, in a file of its own.
        likelihood: what suits the values.
    """

    label: str
    anew: bool = False
    once: bool = False
    published: bool = False
    likelihood: str = "bernoulli"

    @property
    def grey(self) -> bool:
        """Whether the values stay as they are."""
        return not (self.anew or self.once or self.published)


BINARISATIONS = {
    "dynamic": Binarisation("dynamic binarisation", anew=True),
    "once": Binarisation("once binarisation", once=True),
    "fixed": Binarisation("fixed binarisation", published=True),
    "none": Binarisation("grey values", likelihood="gaussian"),
}


def check_missing(missing: str | None) -> None:
    """Raise ValueError unless it is None or one of :data:`MISSING`."""
    if missing is not None:
        check_choice("missing", missing, MISSING)


# --- Bernoulli draws --------------------------------------------------------------------------


_TRAIN_KEY = 1 << 21  # of the seed's keys, the one that a training set is drawn by
_BLOCK = 256  # examples a call: bounds the memory of the reference; part of what a draw depends on


def _bernoulli(
    probability: Tensor, seed: Tensor, example: int = 0, missing: str | None = None
) -> Tensor:
    """One draw for each element of `probability` (any shape, float32), 0.0 or 1.0; what is missing
    stays so.

    Salt and pepper at rate 1 is 1 with probability `salt` and 0 otherwise, exactly at 0 and 1.
    Its kernel draws and compares in one pass, several times faster than torch's generator can
    make the uniforms alone.
    """
    mask = observed(probability, missing)
    flat = (probability if mask is None else probability.masked_fill(~mask, 0)).reshape(-1)
    draw = torch.ops.dvae_fast.corrupt(
        flat.view(1, -1), "salt_and_pepper", flat.new_ones(1), flat, seed, 1, example, 0
    )
    drawn = cast("Tensor", draw.view(probability.shape))
    return drawn if mask is None else drawn.where(mask, probability)


def fixed_draw(grey: Tensor, seed: int, split: str, missing: str | None = None) -> Tensor:
    """The draw of a whole split, a function of (seed, split, index, pixel) alone."""
    return _draw_from(grey, 0, seed=seed, split=split, missing=missing)


def _draw_from(
    grey: Tensor, start: int, *, seed: int, split: str, missing: str | None = None
) -> Tensor:
    """The same of the rows from `start`, a multiple of a block, on."""
    key = torch.tensor([seed], dtype=torch.int64, device=grey.device)
    if split == SPLITS[0]:  # whose indices are those of a corruption by the same seed, too
        key = derived_key(key, _TRAIN_KEY)
    # Room for a million examples each; of more, parts of two splits share their noise.
    first = (SPLITS.index(split) << 20) + start // _BLOCK
    blocks = torch.split(grey, _BLOCK)
    return torch.cat([_bernoulli(b, key, first + i, missing) for i, b in enumerate(blocks)])


# --- the data set -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples, in memory or streamed from where they lie.

    Attributes:
        name: one of :data:`DATASETS`, or what one's own is called.
        train, valid, test: float32 (N, D), a tensor or `Streamed`, D = the product of `shape`, row
            by row, channel by channel; before any draw: grey for ``dynamic`` and ``none``, 0 or 1
            for ``once`` and ``fixed``.
        image_shape: (H, W) or (C, H, W); None for a table.
        binarise: one of :data:`BINARISATIONS`.
        seed: the one that governs the split and the fixed draws.
        mean: (D,), the mean of the training examples.
        values: what the values are before any draw, one of :data:`KINDS`.
        labels: int64 (N,) of each split, where there are any.
        classes: names of the labels 0, 1, …, where they have names.
        columns: names of a table's values.
        fingerprint: the same for the same values; None for the named sets.
        scaling: how the values were made of what lies there.
        shades: the values that are black and white in a picture.
        missing: one of :data:`MISSING`, by which `train`, `valid` and `test` say what is missing;
            None where nothing is.
        share_missing: of all values.
    """

    name: str
    train: Examples
    valid: Examples
    test: Examples
    image_shape: tuple[int, ...] | None
    binarise: str
    seed: int
    mean: Tensor
    values: str = "grey"
    labels: Mapping[str, Tensor] | None = None
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    fingerprint: str | None = None
    scaling: Scaling = field(default_factory=lambda: Scaling.by(1.0))
    shades: tuple[float, float] = (0.0, 1.0)
    missing: str | None = None
    share_missing: float = 0.0
    _drawn: dict[str, Examples] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_arrays(
        cls,
        train: Any,
        valid: Any = None,
        test: Any = None,
        *,
        labels: Any = None,
        values: str | None = None,
        binarise: str = "none",
        split: str | Sequence[float] = SPLIT,
        seed: int = 0,
        name: str = "arrays",
        missing: str | None = None,
    ) -> Dataset:
        """A data set of one's own.

        Args:
            train: an array or tensor of examples, (N, D), (N, H, W), (N, C, H, W) or
                (N, H, W, C); a sparse matrix of SciPy; a ``numpy.memmap``, which is read a batch
                at a time where it is large; or a ``torch.utils.data`` Dataset or DataLoader, of x
                or (x, label), of which an iterable one is read once.
            valid, test: the same; None to cut that part from `train`.
            labels: whole numbers or strings, one for each example of `train`; or a mapping of
                them from "train", "valid" and "test".
            values: what they are, one of :data:`KINDS`. Default: that is looked at.
            binarise: one of :data:`BINARISATIONS` but ``fixed``.
            split: shares of the three parts, such as "0.8,0.1,0.1", by a permutation that depends
                on `seed` alone.
            seed: of that and of the fixed draws.
            name: what it is called.
            missing: "nan", if NaN stands for what is missing. Default: NaN is refused.

        Raises:
            TypeError, ValueError: naming the argument, the rule and the value.
        """
        from dvae_fast.data.arrays import raw_arrays
        from dvae_fast.data.own import build

        raw = raw_arrays({"train": train, "valid": valid, "test": test}, labels, name)
        return build(raw, values=values, binarise=binarise, split=split, seed=seed, missing=missing)

    @property
    def size(self) -> int:
        """D, the numbers of an example."""
        return self.train.shape[1]

    @property
    def kind(self) -> Kind:
        """What a model is given."""
        way = BINARISATIONS[self.binarise]
        return KINDS[self.values if way.grey else BINARY]

    @property
    def streamed(self) -> bool:
        """Whether examples are read when they are asked for."""
        return isinstance(self.train, Streamed)

    def observed(self, x: Tensor) -> Tensor | None:
        """The mask of examples (n, D), True where x is there; None where nothing is missing."""
        return observed(x, self.missing)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data with the training examples, which alone are read often, on `device`.

        Those that are streamed stay where they are: their batches move.
        """
        train = self.train
        return self if isinstance(train, Streamed) else replace(self, train=train.to(device))

    def first(self, train: int | None, valid: int | None) -> Dataset:
        """The same with the first so many training and validation examples; all where None."""
        if train is None and valid is None:
            return self
        labels = self.labels
        if labels is not None:
            labels = {**labels, "train": labels["train"][:train], "valid": labels["valid"][:valid]}
        images = _first(self.train, train)
        mean = self.mean
        if train is not None:
            of_some = mean_of(images, self.missing)
            mean = of_some.where(~of_some.isnan(), mean.to(of_some.device))
        return replace(
            self, train=images, valid=_first(self.valid, valid), mean=mean, labels=labels
        )

    def moved(self, count: int) -> Dataset:
        """The same with the first `count` validation examples behind the training examples.

        Raises:
            ValueError: if there are not more than that, or they are streamed.
        """
        if not count:
            return self
        train, valid = self.train, self.valid
        if not isinstance(train, Tensor) or not isinstance(valid, Tensor):
            raise ValueError(f"{self.name} must be in memory for its parts to change, not streamed")
        if count >= len(valid):
            raise ValueError(
                f"so many of {self.name}'s {len(valid)} validation examples must leave one, "
                f"got {count}"
            )
        labels = self.labels
        if labels is not None:
            more, rest = labels["valid"][:count], labels["valid"][count:]
            labels = {**labels, "train": torch.cat([labels["train"], more]), "valid": rest}
        train = torch.cat([train, valid[:count]])
        mean = mean_of(train, self.missing)
        mean = mean.where(~mean.isnan(), self.mean)
        return replace(self, train=train, valid=valid[count:], mean=mean, labels=labels)

    def train_batch(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Training examples by index: (B,) int64 → (B, D); ``dynamic`` draws from `generator`."""
        train, index = self.train, index.to(self._place(), non_blocking=True)
        # Of rows on end a third of the time that indexing takes.
        grey = train.index_select(0, index) if isinstance(train, Tensor) else train[index]
        if not BINARISATIONS[self.binarise].anew:
            return grey
        # The generator gives the seed and the kernel the noise: one number drawn, not B·D.
        seed = torch.randint(0, 2**63 - 1, (1,), generator=generator, device=generator.device)
        key = seed.to(grey.device, non_blocking=True)
        return _bernoulli(grey, key, missing=self.missing)

    def _place(self) -> torch.device:
        train = self.train
        return torch.device("cpu") if isinstance(train, Streamed) else train.device

    def evaluation(self, split: str) -> Examples:
        """What to evaluate a model on, (N, D); the same at every call.

        Raises:
            ValueError: if `split` is not one of :data:`SPLITS`.
        """
        check_choice("split", split, SPLITS)
        images = cast("Examples", getattr(self, split))
        if not BINARISATIONS[self.binarise].anew:
            return images
        if split not in self._drawn:
            if isinstance(images, Streamed):
                draw = partial(_draw_from, seed=self.seed, split=split, missing=self.missing)
                self._drawn[split] = images.drawn(draw, _BLOCK)
            else:
                with torch.inference_mode(False):  # kept for whoever wants a gradient later
                    self._drawn[split] = fixed_draw(images, self.seed, split, self.missing)
        return self._drawn[split]

    def shaded(self, x: Tensor) -> Tensor:
        """x, (..., D), as shades from 0 to 1; NaN stays."""
        low, high = self.shades
        return ((x - low) / (high - low)).clamp(0, 1)


def with_channels(image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W) or (C, H, W) → (C, H, W)."""
    height, width = image_shape[-2:]
    return (image_shape[0] if len(image_shape) == 3 else 1), height, width


def _first(x: Examples, count: int | None) -> Examples:
    if isinstance(x, Streamed):
        return x.first(count)
    return x[:count]


def evenly_spaced(x: Tensor, n: int) -> Tensor:
    """n of the rows of x, from the first on: of a set sorted by class, as many of each."""
    return x[torch.arange(n, device="cpu") * len(x) // n]
