"""Any latent-variable model, ours or anybody's, as the evaluator sees it."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from dvae_fast import functional
from dvae_fast._checks import check_float
from dvae_fast.evaluation.partial import fingerprint
from dvae_fast.functional.linear import with_scale
from dvae_fast.likelihoods import Bernoulli, Likelihood, get_likelihood
from dvae_fast.models import MLP, Autoencoder, BernoulliLatentModel, Softplus, sample_gaussian
from dvae_fast.models.layers import evaluating, hooked
from dvae_fast.models.posterior import is_full

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dvae_fast.functional.linear import Scale

    Params = Tensor | tuple[Tensor, ...]

__all__ = ["EncoderDecoder", "Evaluated", "Model", "has_bfloat16", "precision", "rows_at_once"]

# A row of the usual network holds some 2 kB of latents and hidden activations: on a CPU a few
# thousand rows stay in a shared cache of 8 MB, and make the cost of launching the dozen operators
# (about 0.1 ms of 10 ms) vanish. A GPU wants more: this, and importance sampling still more, see
# `dvae_fast.batching`.
_ROWS_CPU = 2500
# Where hidden activations are never held a row is 200 bytes of latents.
_ROWS_DENSE = 8000
_ROWS_GPU = 65536


def rows_at_once(device: torch.device) -> int:
    """Rows (examples x samples) to decode at once."""
    return _ROWS_CPU if device.type == "cpu" else _ROWS_GPU


class EncoderDecoder(Protocol):
    """What a model must have to be evaluated: q(z|x), and the parameters of p(x|z)."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) → mean and log_var (B, Z) of a diagonal Gaussian; p(z) is N(0, I).

        Of a full one, a lower triangular L (B, Z, Z) in the place of log_var: see
        `dvae_fast.models.posterior`.
        """

    def decode(self, z: Tensor) -> Params:
        """(B, K, Z) → logits (B, K, D), or a pair (mean, scale)."""


#: what can be evaluated: one of ours, an object with encode and decode, or a pair of functions
Model = Autoencoder | EncoderDecoder | tuple[Callable[..., Any], Callable[..., Any]]


def _likelihood_of(model: Any, given: str | Likelihood | None) -> Likelihood:
    """What was given, or else the model's own, or else a Bernoulli."""
    own = getattr(model, "likelihood", None)
    if given is None:
        if own is None:
            return Bernoulli()
        return get_likelihood(own, "model.likelihood")
    likelihood = get_likelihood(given)
    if isinstance(model, Autoencoder):
        same = likelihood.kernel is not None and likelihood.kernel == model.likelihood.kernel
        if not same and likelihood is not model.likelihood:
            raise ValueError(
                f"likelihood must be the model's, {model.likelihood.kind}, got {likelihood.kind}"
            )
    return likelihood


class Evaluated:
    """Encoder, decoder and likelihood of a model of any kind.

    Args:
        model: an `Autoencoder`, an `EncoderDecoder` or a pair of callables
            (encode, decode).
        likelihood: None for the model's own, "bernoulli" if it has none.
        scale: for a likelihood of two parameters whose decoder returns the first alone; of more, a
            tuple of the others.

    Raises:
        TypeError, ValueError: if the model has neither, or another likelihood.
    """

    def __init__(
        self,
        model: Any,
        likelihood: str | Likelihood | None = None,
        scale: Scale | None = None,
    ) -> None:
        self.own = model if isinstance(model, Autoencoder) else None
        if isinstance(model, tuple):
            if len(model) != 2 or not all(callable(part) for part in model):
                raise TypeError("model must be a model or a pair of callables (encode, decode)")
            self.encode, self.decode = model
        elif callable(getattr(model, "encode", None)) and callable(getattr(model, "decode", None)):
            self.encode, self.decode = model.encode, model.decode
        else:
            raise TypeError(
                "model must have methods encode and decode, or be a pair of callables "
                f"(encode, decode); got {type(model).__name__}"
            )
        self.likelihood = _likelihood_of(model, likelihood)
        self.scale = scale
        #: the parameters that the decoder does not return
        self.scales = tuple(scale) if isinstance(scale, (tuple, list)) else (scale,)
        if scale is not None and (len(self.likelihood.params) < 2 or self.own is not None):
            raise ValueError(
                "scale must be left out for a model of this package, or a likelihood without one "
                f"({self.likelihood.kind}); got {scale}"
            )
        # A decoder that ends in a plain linear layer: what comes before it, and that layer; and,
        # where nothing but plain layers come before it, all of them and their activation.
        self._dense: tuple[list[nn.Linear], str] | None = None
        self._trunk: Callable[[Tensor], Tensor] | None = None
        fused = self.likelihood.kernel is not None
        if fused and self.own is not None and (decoder := self.own.split_decoder()) is not None:
            self._trunk, self._output = decoder.trunk, decoder.output
        elif (
            fused
            and (len(self.likelihood.params) == 1 or scale is not None)
            and _ends_in_linear(self.decode)
        ):
            self._trunk, self._output = self.decode[:-1], self.decode[-1]
        if self._trunk is not None:
            self._dense = _dense_layers(self._trunk, self._output)
        #: what a prior of one's own, or a second layer of latents, adds to the log-ratio, if any
        self.log_ratio_above: Callable[..., Tensor] | None = (
            None
            if self.own is not None and self.own.prior_is_fused
            else getattr(model, "log_ratio_above", None)
        )
        #: draws from what `posterior` returns; that of binary latents is the model's
        self.discrete = isinstance(model, BernoulliLatentModel)
        self.draw = model.draw_posterior if self.discrete else sample_gaussian
        self.modules = _modules_behind((model, self.encode, self.decode, self.likelihood))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Every module in evaluation mode, and each one's own mode again afterwards."""
        with ExitStack() as stack:
            for module in self.modules:
                stack.enter_context(evaluating(module))
            yield

    def compile(self) -> None:
        """Run the decoder through ``torch.compile`` from now on, but for a last linear layer that
        is taken with the likelihood."""
        self._dense = None
        if self._trunk is not None:
            self._trunk = cast("Callable[[Tensor], Tensor]", torch.compile(self._trunk))
        else:
            self.decode = torch.compile(self.decode)

    def like(self, x: Tensor) -> Tensor:
        """A tensor on the device and of the dtype that batches must have."""
        return next((p for m in self.modules for p in m.parameters()), x)

    def check_data(self, x: Tensor) -> int:
        """D, if x is a floating-point tensor (N, D) with N >= 1 that the model can take.

        Raises:
            TypeError, ValueError: naming x, the rule and the value.
        """
        check_float("x", x)
        size = self.own.data_size if self.own is not None else x.shape[-1] if x.dim() else 0
        if x.dim() != 2 or x.shape[1] != size or x.shape[0] < 1:
            raise ValueError(
                f"x must have shape (N, D) with N >= 1 and D = {size}, got {tuple(x.shape)}"
            )
        return size

    def posterior(self, x: Tensor) -> tuple[Tensor, ...]:
        """q(z|x), encoded once: (B, D) → mean (B, Z), and log_var (B, Z) or L (B, Z, Z); of binary
        latents, logits (B, Z) only."""
        result = self.encode(x)
        if self.discrete:
            return (result,)
        pair = isinstance(result, (tuple, list)) and len(result) == 2
        if not pair or not all(isinstance(part, Tensor) for part in result):
            got = f"{len(result)} values" if isinstance(result, (tuple, list)) else type(result)
            raise TypeError(f"encode must return two tensors, mean and log_var, got {got}")
        mean, spread = result
        if mean.dim() != 2 or len(mean) != len(x):
            raise ValueError(
                f"encode must return mean and log_var of shape (B, Z) with B = {x.shape[0]}, "
                f"got {tuple(mean.shape)}"
            )
        is_full(mean, spread)
        return mean, spread

    @torch.no_grad()
    def identity(self, x: Tensor) -> dict[str, Any]:
        """What tells this model from another: its modules, and what it makes of the first x."""
        states = [(m, name, t) for m in self.modules for name, t in m.state_dict().items()]
        like = self.like(x)
        with self.evaluating():
            parts = self.posterior(x[:1].to(like.device, like.dtype))
            params = self.decode(parts[0].unsqueeze(1))
        first = self.likelihood.unpack(with_scale(params, self.scale))[0]
        numbers = [t.double().flatten()[:8].cpu() for t in (*parts, first)]
        numbers.append(first.double().mean().cpu().reshape(1))
        return {
            "parameters": fingerprint(
                part for m, name, t in states for part in (type(m).__name__, name, t)
            ),
            "outputs": [float(v) for v in torch.cat(numbers).nan_to_num(0.0, 0.0, 0.0)],
        }

    def rows_at_once(self, like: Tensor, *, held: bool) -> int:
        """Rows (examples x samples) to decode at once without gradients, of data like `like`; held:
        activations are held whatever the decoder."""
        wide = like.dtype in (torch.float32, torch.float64)
        if like.device.type == "cpu" and wide and self._dense is not None and not held:
            return _ROWS_DENSE
        return rows_at_once(like.device)

    def log_weights(self, z: Tensor, x: Tensor, log_ratio: Tensor) -> Tensor:
        """log p(x|z) + log_ratio: z (B, K, Z), x (B, D), log_ratio (B, K) → (B, K).

        Differentiable. The logits of a Bernoulli are not held where the decoder ends in a plain
        linear layer, and hidden activations neither where all its layers are plain.
        """
        if self._trunk is None:
            params = with_scale(self.decode(z), self.scale)
            return functional.log_weights(params, x, log_ratio, self.likelihood)
        if self._dense is not None:
            layers, activation = self._dense
            return functional.mlp_log_weights(
                z,
                [(layer.weight, layer.bias) for layer in layers],
                x,
                log_ratio,
                self.likelihood,
                activation=activation,
                scale=self.scale,
            )
        weight, bias = self._output.weight, self._output.bias
        hidden = self._trunk(z)
        return functional.linear_log_weights(
            hidden, weight, bias, x, log_ratio, self.likelihood, scale=self.scale
        )


def _modules_behind(parts: Any, depth: int = 3) -> list[nn.Module]:
    """The modules that are `parts`, or that these refer to: as the owner of a method, attributes,
    a closure's variables, globals that a function names, arguments of a `functools.partial`."""
    found: dict[int, nn.Module] = {}

    def look(thing: Any, left: int) -> None:
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif left > 0:
            for other in _referred_to(thing):
                look(other, left - 1)

    for part in parts:
        look(part, depth)
    return list(found.values())


def _referred_to(thing: Any) -> Iterator[Any]:
    if isinstance(thing, (list, tuple)):
        yield from thing
    elif isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, functools.partial):
        yield from (thing.func, *thing.args, *thing.keywords.values())
    elif isinstance(thing, types.MethodType):
        yield thing.__self__
    elif isinstance(thing, types.FunctionType):
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # empty
                yield cell.cell_contents
        names = thing.__code__.co_names
        yield from (thing.__globals__[name] for name in names if name in thing.__globals__)
    elif not isinstance(thing, (type, types.ModuleType, Tensor)):
        yield from getattr(thing, "__dict__", {}).values()


def _ends_in_linear(decode: Any) -> bool:
    """Whether `decode` is a plain Sequential with a plain linear layer at its end, no hooks."""
    return (
        type(decode) is nn.Sequential
        and len(decode) > 0
        and type(decode[-1]) is nn.Linear
        and not hooked(decode)
        and not hooked(decode[-1])
    )


# What `functional.mlp_log_weights` knows; torch's softplus is linear from 20 on, where the other
# exceeds it by 2e-9.
_ACTIVATIONS: dict[type[nn.Module], str] = {
    Softplus: "softplus",
    nn.Softplus: "softplus",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
}


def _dense_layers(trunk: Any, output: nn.Linear) -> tuple[list[nn.Linear], str] | None:
    """The linear layers of a decoder that is plain ones alone, each hidden one followed by the
    same activation, and that activation's name; None for any other."""
    if type(trunk) not in (nn.Sequential, MLP) or hooked(trunk):
        return None
    parts = list(trunk)
    linears, others = parts[::2], parts[1::2]
    kinds = {_ACTIVATIONS.get(type(part), "") for part in others} or {"softplus"}
    plain = (
        len(linears) == len(others)
        and all(type(part) is nn.Linear for part in linears)
        # Not a quantised or distributed tensor.
        and all(type(p) is nn.Parameter for part in (*linears, output) for p in part.parameters())
        and len(kinds) == 1
        and not any(hooked(part) for part in parts)
        and all(p.beta == 1 and p.threshold >= 20 for p in others if isinstance(p, nn.Softplus))
    )
    name = kinds.pop()
    return ([*linears, output], name) if plain and name else None


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether matrix products in bfloat16 have instructions of their own there; without, those of
    a CPU take some twenty times as long as in float32."""
    if torch.device(device).type != "cpu":
        return True
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16", known.get("bf16", True)))


def precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Where matrix products run in `dtype`; None leaves them as they are."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype)
