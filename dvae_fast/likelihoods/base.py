"""What every likelihood has."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dvae_fast._dtypes import accumulation_dtype
from dvae_fast.likelihoods.links import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    Links = Mapping[str, Callable[[Tensor], Tensor]]

__all__ = ["Likelihood", "check_positive", "checked_mean", "in_wide", "not_negative", "weighted"]

# Methods whose first argument is the parameters, which they get as a tuple.
_OF_PARAMS = ("log_prob", "mean", "sample")
# What follows from a density, and so does not hold of another one.
_OF_DENSITY = ("derivatives", "derivative_in_x")


#: values whose support is looked at together
_AT_ONCE = 1 << 24


class Likelihood:
    """p(x|z) = Π p(x_i; params_i): the base of all likelihoods, and of your own.

    A subclass names its parameters and gives `log_prob`; `mean` is for pictures, `sample` for
    simulation, and `support` for checks of the data. With that, an object of it works wherever a
    likelihood does, from `dvae_fast.log_weights` to the evaluator::

        class Laplace(Likelihood):
            params = {"mean": identity, "scale": positive}

            def log_prob(self, params, x):
                mean, scale = params
                return -(x - mean).abs() / scale - (2 * scale).log()

    These methods get the parameters as a tuple in the order of `params`, whether a decoder
    returned one tensor, a tuple, or a mapping by name. Tensors that `log_prob` finds elsewhere (an
    attribute that is a parameter of a module, say) get their gradients as well.
    """

    #: names of the parameters, in order; and what the head of a decoder makes of its outputs so
    #: that they are that: a `Link`, or any function of a tensor
    params: ClassVar[Links] = {}
    #: its formula in ``csrc/core/likelihoods.h``; None: `log_prob` alone
    kernel: str | None = None
    #: where it has none, an operator of all its parameters that makes log-weights of rows; None:
    #: none such
    rows: str | None = None
    #: whether log p has no derivative in x, data being discrete
    discrete: ClassVar[bool] = False
    #: closed interval of what data may be, and the distance between its values, counted from 0; 0
    #: for a continuum. For those `support` and its messages read them; others define `support`.
    interval: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    step: ClassVar[float] = 0.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__
        if "params" in own and not isinstance(own["params"], property):
            _check_links(cls.__name__, own["params"])
        # Also where it comes of a class beside: what is further up is of another density.
        density = _place(cls, "log_prob")
        for name in ("kernel", "rows"):
            if _place(cls, name) > density:
                setattr(cls, name, None)
        for name in _OF_DENSITY:
            if _place(cls, name) > density:
                setattr(cls, name, getattr(Likelihood, name))
        for name in _OF_PARAMS:
            found = cls.__mro__[_place(cls, name)]
            if found is cls or not issubclass(found, Likelihood):
                setattr(cls, name, _of_tuple(found.__dict__[name]))

    @property
    def kind(self) -> str:
        """How messages and files name it."""
        return self.kernel or repr(self)

    @property
    def is_density(self) -> bool:
        """Whether log p is of a density, and so depends on the unit of x, or of a probability."""
        return not self.discrete

    def unpack(self, params: Any) -> tuple[Any, ...]:
        """The parameters as a tuple in the order of `params`, from what a decoder returned.

        Raises:
            TypeError: if they are not as many, or not those.
        """
        names = tuple(self.params)
        if isinstance(params, Tensor):
            if len(names) == 1:
                return (params,)
        elif isinstance(params, (tuple, list)):
            if len(params) == len(names):
                return tuple(params)
        elif isinstance(params, Mapping) and params.keys() == set(names):
            return tuple(params[name] for name in names)
        many = {1: "a tensor of ", 2: "a pair "}.get(len(names), "a tuple ")
        listed = names[0] if len(names) == 1 else f"({', '.join(names)})"
        got = type(params).__name__
        if isinstance(params, (tuple, list)):
            got = f"{len(params)} of them" if len(names) > 1 else f"{got} of {len(params)}"
        elif isinstance(params, Mapping):
            got = f"{got} of {', '.join(map(str, params))}"
        raise TypeError(f"params must be {many}{listed} for a {type(self).__name__}, got {got}")

    # --- density ------------------------------------------------------------------------------

    def log_prob(self, params: Any, x: Tensor) -> Tensor:
        """log p(x|z) of each element, in nats, differentiable.

        Args:
            params: each of one shape, (*L, B, K, D) in `dvae_fast.log_weights`.
            x: of a shape that broadcasts to that.
        """
        raise NotImplementedError(_missing(self, "log_prob(params, x)", "a likelihood"))

    def derivatives(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        """∂ log p/∂params of each element, by autograd unless a subclass knows better."""
        return self._autograd(params, x)[:-1]

    def derivative_in_x(self, params: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """∂ log p/∂x of each element, by autograd unless a subclass knows better."""
        return self._autograd(params, x)[-1]

    def _autograd(self, params: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:
        operands = torch.broadcast_tensors(*params, x)
        vjp: Any = torch.func.vjp
        log_p, pull = vjp(lambda *t: self.log_prob(t[:-1], t[-1]), *operands)
        return tuple(pull(torch.ones_like(log_p)))

    # --- data ---------------------------------------------------------------------------------

    def support(self, x: Tensor) -> Tensor:
        """Whether each element of x is a value that data may have: bool, of x's shape."""
        lower, upper = self.interval
        inside = x.isfinite() & (x >= lower) & (x <= upper)
        return inside & self._on_steps(x) if self.step else inside

    def _on_steps(self, x: Tensor) -> Tensor:
        steps = x / self.step
        # A grey level read as k/255 in float32 is a level; one that went through 16 bits is not.
        return (steps - steps.round()).abs() <= torch.clamp(1e-6 * steps.abs(), min=1e-3)

    def check_support(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Raise ValueError if a value of ``x`` lies outside the support (NaN passes); with a mask
        (bool, x's shape), where that is True."""
        if x.dim() > 1 and x.numel() > _AT_ONCE:  # looked at in parts, for memory
            rows = max(1, _AT_ONCE // max(1, x[0].numel()))
            masks = [None] * len(x) if mask is None else mask.split(rows)
            for part, seen in zip(x.split(rows), masks, strict=False):
                self.check_support(part, seen)
            return
        inside = self.support(x)
        if not isinstance(inside, Tensor) or inside.dtype != torch.bool or inside.shape != x.shape:
            got = type(inside).__name__
            if isinstance(inside, Tensor):
                got = f"{inside.dtype} of shape {tuple(inside.shape)}"
            raise TypeError(
                f"support of {type(self).__name__} must return bool of x's shape, "
                f"{tuple(x.shape)}, got {got}"
            )
        outside = ~(inside | x.isnan())
        if mask is not None:
            outside &= mask
        if not bool(outside.any()):
            return
        x, outside = (x, outside) if mask is None else (x[mask], outside[mask])
        lower, upper = self.interval
        first = x[outside][0].item()
        if bool(((x < lower) | (x > upper)).any()):
            low, high = (f"{v.item():g}" for v in x[~x.isnan()].aminmax())
            raise ValueError(
                f"x must lie in [{lower:g}, {upper:g}], the support of the {self.kind} "
                f"likelihood, got values from {low} to {high}"
            )
        if self.step and type(self).support is Likelihood.support:
            unit = "1" if self.step == 1 else f"1/{1 / self.step:.0f}"
            raise ValueError(
                f"x must hold multiples of {unit}, the support of the {self.kind} likelihood, "
                f"got {first:.9g}"
            )
        raise ValueError(f"x must lie in the support of the {self.kind} likelihood, got {first:g}")

    def check_mask(self, mask: Tensor) -> None:
        """Raise ValueError if a mask (..., D), True where x was observed, leaves a part of what has
        no density by parts. By default each dimension has its own."""

    def doubt_data(self, x: Tensor) -> str | None:
        """What looks wrong about data though the support has it, in plain words; None if nothing
        does."""

    @property
    def doubtful(self) -> tuple[float, float] | None:
        """A closed interval within which a decoder's first parameter may not be what it should;
        None where there is none."""
        return None

    def doubt_params(self, low: float, high: float) -> str | None:
        """What looks wrong about a decoder whose first parameter is never below `low` nor above
        `high`, as of several of its outputs; None if nothing does."""

    def check_values(self, params: tuple[Tensor, ...]) -> None:
        """Raise ValueError if parameters are none (NaN passes). By default, whatever they are."""

    def start(self, data_mean: Tensor) -> Tensor | None:
        """The first output of a decoder's head, before its link, that gives data this mean; None
        if it is not known.

        Raises:
            ValueError: if no data has that mean.
        """
        name, link = next(iter(self.params.items()))
        if name != "mean" or not isinstance(link, Link):
            return None
        return link.inverse(checked_mean(data_mean, link.interval))

    @property
    def restricts_params(self) -> bool:
        """Whether there are numbers that `check_values` refuses as the first parameter."""
        others = (torch.ones(2, device="cpu"),) * (len(self.params) - 1)
        try:
            self.check_values((torch.tensor([-1e3, 1e3], device="cpu"), *others))
        except ValueError:
            return True
        return False

    # --- pictures and simulation --------------------------------------------------------------

    def mean(self, params: Any) -> Tensor:
        """E[x|z] in data space, the shape of the decoder output."""
        raise NotImplementedError(_missing(self, "mean(params)", "a picture"))

    def sample(self, params: Any, generator: torch.Generator | None = None) -> Tensor:
        """One draw x ~ p(x|z), by `generator`, or else governed by ``torch.manual_seed``."""
        raise NotImplementedError(_missing(self, "sample(params, generator=None)", "a simulation"))

    def __repr__(self) -> str:
        # `training` is of those that are modules too.
        own = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training"}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in own.items())})"


def _place(cls: type, name: str) -> int:
    """Which of its classes, nearest first, a class has an attribute from."""
    return next(i for i, one in enumerate(cls.__mro__) if name in one.__dict__)


def _missing(likelihood: Likelihood, what: str, why: str) -> str:
    return f"{type(likelihood).__name__} must define {what}, which {why} needs"


def checked_mean(mean: Tensor, interval: tuple[float, float]) -> Tensor:
    lower, upper = interval
    inside = mean.isfinite() & (mean >= lower) & (mean <= upper)
    if not bool(inside.all()):
        rule = f"lie in [{lower:g}, {upper:g}]"
        if upper == math.inf:
            rule = "be finite" if lower == -math.inf else f"be finite and >= {lower:g}"
        raise ValueError(
            f"data_mean must {rule}, got values from {mean.min().item():g} to {mean.max().item():g}"
        )
    return mean


def _check_links(name: str, links: Any) -> None:
    right = isinstance(links, Mapping) and len(links) > 0
    if not right or not all(isinstance(k, str) and callable(f) for k, f in links.items()):
        raise TypeError(
            f"params of {name} must map each parameter's name to what a decoder's head makes of "
            f"its output, as {{'mean': identity, 'scale': positive}}; got {links!r}"
        )


def _of_tuple(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`method` with its parameters as a tuple, whatever form they have."""

    @functools.wraps(method)
    def run(self: Likelihood, params: Any, *args: Any, **options: Any) -> Tensor:
        return method(self, self.unpack(params), *args, **options)

    return run


def in_wide(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A mean or draws, made in float32 of parameters in bfloat16 or float16 and rounded at the end,
    for what would cancel, or has too few values of its own."""

    @functools.wraps(method)
    def run(self: Likelihood, params: tuple[Any, ...], *args: Any, **options: Any) -> Tensor:
        wide = (p.to(accumulation_dtype(p.dtype)) if isinstance(p, Tensor) else p for p in params)
        return method(self, tuple(wide), *args, **options).to(params[0].dtype)

    return run


def not_negative(value: Tensor) -> Tensor:
    """A parameter that may not be negative: NaN where it is, as its logarithm would be, and so is
    what is made of it, derivatives too."""
    return value + torch.where(value < 0, math.nan, 0.0)


def weighted(weight: Tensor, value: Tensor) -> Tensor:
    """weight · value, in which a weight of 0 stops a value that is not finite; differentiable."""
    stopped = (weight == 0) & ~value.isfinite()
    return weight * value.masked_fill(stopped, 0.0)


def check_positive(name: str, value: Tensor) -> None:
    """Raise ValueError unless all of it is > 0 (NaN passes)."""
    value = value.detach()
    if bool((value <= 0).any()):
        raise ValueError(f"{name} must be > 0, got a minimum of {value.min().item():g}")


class OfLogits(Likelihood):
    """The base of those whose parameter may be any number, and is taken for a probability now and
    then: by a decoder that ends in a sigmoid or a softmax."""

    #: what to do about a decoder that makes probabilities
    of_probabilities: ClassVar[str] = "leave that last layer out."

    @property
    def doubtful(self) -> tuple[float, float] | None:
        """Where probabilities lie."""
        return 0.0, 1.0

    def doubt_params(self, low: float, high: float) -> str | None:
        """Probabilities in the place of logits; a decoder that always says the same is neither."""
        if self.doubtful is None or not 0 <= low < high <= 1:
            return None
        return (
            "The decoder's outputs, taken for logits, all lie in [0, 1] "
            f"({low:.3g} to {high:.3g}): if they are probabilities, as of a decoder "
            f"that ends in a sigmoid or a softmax, {self.of_probabilities}"
        )


class MeanAndScale(Likelihood):
    """The base of those whose first parameter is their mean, and whose second is a scale."""

    def check_values(self, params: tuple[Tensor, ...]) -> None:
        check_positive("scale", params[1])

    def mean(self, params: tuple[Tensor, Tensor]) -> Tensor:
        return params[0]
