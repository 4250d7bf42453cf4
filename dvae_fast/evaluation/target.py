"""Any latent-variable model, ours or anybody's, as the evaluator sees it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from dvae_fast import functional
from dvae_fast._checks import check_dense, check_float, check_mask_of
from dvae_fast.data.given import Given, as_tensor, check_rows_of, given_from
from dvae_fast.evaluation.modules import (
    always_training,
    evaluating_all,
    float_dtype,
    modules_behind,
    place_of,
)
from dvae_fast.evaluation.partial import fingerprint
from dvae_fast.functional.linear import takes_layers_whole, with_scale
from dvae_fast.likelihoods import Bernoulli, Likelihood, get_likelihood
from dvae_fast.models import Autoencoder, BernoulliLatentModel, sample_gaussian
from dvae_fast.models.distributions import Sampled, is_distribution
from dvae_fast.models.layers import dense_layers, hooked
from dvae_fast.models.posterior import is_full
from dvae_fast.models.wrappers import unwrapped

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from dvae_fast.functional.linear import Scale
    from dvae_fast.models.decoders import Decoder

    Params = Tensor | tuple[Tensor | float, ...]

__all__ = ["EncoderDecoder", "Evaluated", "Model", "rows_at_once"]

# A row of the usual network holds some 2 kB of latents and hidden activations: on a CPU a few
# thousand rows stay in a shared cache of 8 MB, and make the cost of launching the dozen operators
# (about 0.1 ms of 10 ms) vanish. A GPU wants more: this, and importance sampling still more, see
# `dvae_fast.batching`.
_ROWS_CPU = 2500
# Decodes of which the range is looked at, on a CPU no more than it takes; and numbers of which it
# says something.
_LOOKS, _ENOUGH = 4, 16
# Where hidden activations are never held a row is 200 bytes of latents.
_ROWS_DENSE = 8000
_ROWS_GPU = 65536


def rows_at_once(device: torch.device) -> int:
    """Rows (examples x samples) to decode at once."""
    return _ROWS_CPU if device.type == "cpu" else _ROWS_GPU


class EncoderDecoder(Protocol):
    """What a model must have to be evaluated: q(z|x), and the parameters of p(x|z)."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor] | Any:
        """(B, *shape), as the data is → mean and log_var (B, Z) of a diagonal Gaussian; p(z) is
        N(0, I).

        Of a full one, a lower triangular L (B, Z, Z) in the place of log_var: see
        `dvae_fast.models.posterior`. Of any other q(z|x), an object with ``rsample((k,))`` → (k, B,
        Z) and ``log_prob(z)`` → (k, B), as those of torch.distributions. Where a context is given,
        it is the second argument of both methods.
        """

    def decode(self, z: Tensor) -> Params:
        """Rows (R, Z) → logits (R, D) or (R, *shape), or a pair (mean, scale); a scale may be a
        number, or of D elements. Of a model with the attribute ``takes_samples = True`` (of a pair
        of functions: of `decode`), z is (B, K, Z) and the result (B, K, D)."""


#: what can be evaluated: one of ours, an object with encode and decode, or a pair of functions
Model = Autoencoder | EncoderDecoder | tuple[Callable[..., Any], Callable[..., Any]]


def _of_a_library(model: Any) -> str:
    """Of a model of another library that has a module here: where it is evaluated."""
    library = type(model).__module__.partition(".")[0]
    module = f"dvae_fast.integrations.{library}"
    # The package of the integrations imports none of them.
    if importlib.util.find_spec(module) is None:
        return ""
    return f" of {library}, for which there is {module}"


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
        self, model: Any, likelihood: str | Likelihood | None = None, scale: Scale | None = None
    ) -> None:
        self.model = model = unwrapped(model)
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
                f"(encode, decode); got {type(model).__name__}{_of_a_library(model)}"
            )
        self.takes_samples = bool(
            getattr(self.decode if isinstance(model, tuple) else model, "takes_samples", False)
        ) or (self.own is not None and self.own.context_size > 0)  # not to repeat the context
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
        self._decoder: Decoder | None = None  # of which these are, where it is of this package
        fused = self.likelihood.kernel is not None
        if fused and self.own is not None and (decoder := self.own.split_decoder()) is not None:
            self._decoder = decoder
            self._trunk, self._output = decoder.trunk, decoder.output
            self._hidden: Callable[[Tensor, Tensor], Tensor] = decoder.hidden
        elif (
            fused
            and (len(self.likelihood.params) == 1 or scale is not None)
            and _ends_in_linear(self.decode)
            and not self.likelihood.restricts_params  # whose output is looked at
        ):
            self._trunk, self._output = self.decode[:-1], self.decode[-1]
        if self._trunk is not None:
            self._dense = dense_layers(self._trunk, self._output)
        #: what a prior of one's own, or a second layer of latents, adds to the log-ratio, if any
        self.log_ratio_above: Callable[..., Tensor] | None = (
            None
            if self.own is not None and self.own.prior_is_fused
            else getattr(model, "log_ratio_above", None)
        )
        #: draws from what `posterior` returns; that of binary latents is the model's
        self.discrete = isinstance(model, BernoulliLatentModel)
        self.draw = model.draw_posterior if self.discrete else sample_gaussian
        self.modules = modules_behind((model, self.encode, self.decode, self.likelihood))
        encoding = modules_behind((self.encode,))
        #: of what encode and decode are given; None: of the data, and of what encode returns
        self.dtype = float_dtype(encoding) or float_dtype(self.modules)
        self._decoded_dtype = float_dtype(modules_behind((self.decode,)))
        #: of an example, as decode returned it last
        self.shape: tuple[int, ...] = ()
        self._looks = _LOOKS
        self._seen = 0
        self._range: tuple[Tensor, Tensor] | None = None
        self._value_looks = _LOOKS
        self._wrong: str | None = None

    def evaluating(self) -> AbstractContextManager[None]:
        """Every module in evaluation mode, and each one's own mode again afterwards."""
        return evaluating_all(self.modules)

    def compile(self) -> None:
        """Run the decoder through ``torch.compile`` from now on, but for a last linear layer that
        is taken with the likelihood."""
        self._dense = None
        if self._trunk is not None:
            self._trunk = cast("Callable[[Tensor], Tensor]", torch.compile(self._trunk))
            if self._decoder is not None:
                self._hidden = torch.compile(self._hidden)
        else:
            self.decode = torch.compile(self.decode)

    def like(self, x: Tensor) -> Tensor:
        """An empty tensor on the model's device and of its dtype, or of x's where it has none."""
        device = place_of(self.modules) or x.device
        if device.type == "meta":
            raise ValueError("model must hold values to be evaluated, got parameters on meta")
        return torch.empty(0, dtype=self.dtype or x.dtype, device=device)

    def examples(self, x: Any, context: Any = None, mask: Any = None) -> Given:
        """x, its context and its mask, of a tensor, an array, a Dataset or a DataLoader.

        Raises:
            TypeError, ValueError: naming the argument, the rule and the value, unless x is (N,
                *shape) of N >= 1 examples of D numbers that the model can take and the
                likelihood's support holds.
        """
        own = self.own
        x, context = given_from(x, context, wants_context=own is not None and own.context_size > 0)
        check_float("x", x)
        if x.is_meta:
            raise ValueError("x must hold values to be evaluated, got a tensor on meta")
        size = math.prod(x.shape[1:])
        wanted = own.data_size if own is not None else size
        if x.dim() < 2 or size != wanted or x.shape[0] < 1:
            rule = "(N, D), or (N, *shape), with N >= 1"
            if own is not None:
                rule = f"(N, D) with N >= 1 and D = {wanted}"
            raise ValueError(f"x must have shape {rule}, got {tuple(x.shape)}")
        if mask is not None:
            mask = check_mask_of(as_tensor("mask", mask), x)
            self.likelihood.check_mask(mask.flatten(1))
            x = x.masked_fill(~mask, 0)
        self.likelihood.check_support(x, mask)
        return Given(x, self.context(context, len(x)), mask).checked()

    def context(self, context: Any, examples: int) -> Any:
        """The context of so many examples, of a tensor or an array; of a model of this package as
        its networks take it.

        Raises:
            TypeError, ValueError: if there is one for each of another number of examples.
        """
        context = as_tensor("context", context)
        if self.own is not None:
            like = torch.empty(0, dtype=self.dtype, device="cpu")
            return self.own.as_context(context, examples, like)
        if context is not None:
            check_dense("context", context)
            check_rows_of("context", context, examples)
        return context

    def encoded(self, x: Tensor) -> Tensor:
        """x as encode takes it, in the model's dtype."""
        x = x if self.dtype is None else x.to(self.dtype)
        return x if self.own is None else x.flatten(1)

    def posterior(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, ...] | Sampled:
        """q(z|x), encoded once: (B, *shape) → mean (B, Z), and log_var (B, Z) or L (B, Z, Z); of
        binary latents, logits (B, Z) only; or a distribution of the encoder's own."""
        told = () if context is None else (context,)
        result = self.encode(self.encoded(x), *told)
        if self.discrete:
            return (result,)
        if is_distribution(result):
            return Sampled(result, len(x))
        pair = isinstance(result, (tuple, list)) and len(result) == 2
        if not pair or not all(isinstance(part, Tensor) for part in result):
            got = f"{len(result)} values" if isinstance(result, (tuple, list)) else type(result)
            raise TypeError(
                f"encode must return two tensors, mean and log_var, got {got}; or one "
                "distribution, with rsample and log_prob"
            )
        mean, spread = result
        if mean.dim() != 2 or len(mean) != len(x):
            raise ValueError(
                f"encode must return mean and log_var of shape (B, Z) with B = {x.shape[0]}, "
                f"got {tuple(mean.shape)}"
            )
        is_full(mean, spread)
        return mean, spread

    @torch.no_grad()
    def identity(self, data: Given) -> dict[str, Any]:
        """What tells this model from another: its modules, and what it makes of the first x."""
        states = [(m, name, t) for m in self.modules for name, t in m.state_dict().items()]
        with self.evaluating():
            one = data[:1].to(self.like(data.x).device)
            posterior = self.posterior(one.x, one.context)
            parts = (posterior.middle(),) if isinstance(posterior, Sampled) else posterior
            z = parts[0].unsqueeze(1)
            first = self.params(z, one.x[0].numel(), one.context)[0]
        numbers = [t.double().flatten()[:8].cpu() for t in (*parts, first)]
        numbers.append(first.double().mean().cpu().reshape(1))
        return {
            "parameters": fingerprint(
                part for m, name, t in states for part in (type(m).__name__, name, t)
            ),
            "outputs": [float(v) for v in torch.cat(numbers).nan_to_num(0.0, 0.0, 0.0)],
        }

    def rows_at_once(self, device: torch.device, dtype: torch.dtype, *, held: bool) -> int:
        """Rows (examples x samples) to decode at once without gradients; held: activations are
        held whatever the decoder."""
        if self.takes_layers_whole(device, dtype) and not held:
            return _ROWS_DENSE
        return rows_at_once(device)

    def takes_layers_whole(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether no activation of the decoder's is held."""
        return self._dense is not None and takes_layers_whole(device, dtype)

    def log_weights(self, z: Tensor, batch: Given, log_ratio: Tensor) -> Tensor:
        """log p(x|z) + log_ratio: z (B, K, Z), log_ratio (B, K) → (B, K).

        Differentiable. The logits of a Bernoulli are not held where the decoder ends in a plain
        linear layer, and hidden activations neither where all its layers are plain.
        """
        x, context = batch.x.flatten(1), batch.context
        mask = None if batch.mask is None else batch.mask.flatten(1)
        if self._trunk is None or (context is not None and self._decoder is None):
            params = self.params(z, x.shape[1], context)
            if mask is None:
                self._look_at_values(params)
            return functional.log_weights(params, x, log_ratio, self.likelihood, mask)
        if self._decoded_dtype is not None:
            z = z.to(self._decoded_dtype)
        if self._dense is not None:
            layers, activation = self._dense
            given: list[tuple[Tensor, Tensor | None]] = [
                (layer.weight, layer.bias) for layer in layers
            ]
            if context is not None and self._decoder is not None:
                z, more = self._decoder.first(z, context.unsqueeze(1))
                if more is not None:  # the bias of each example's own
                    weight, bias = given[0]
                    given[0] = (weight, more.squeeze(1) if bias is None else bias + more.squeeze(1))
            return functional.mlp_log_weights(
                z, given, x, log_ratio, self.likelihood, mask, activation=activation,
                scale=self.scale,
            )  # fmt: skip
        weight, bias = self._output.weight, self._output.bias
        if context is not None:
            return functional.linear_log_weights(
                self._hidden(z, context.unsqueeze(1)), weight, bias, x, log_ratio, self.likelihood,
                mask,
            )  # fmt: skip
        rows = z.flatten(0, 1)
        hidden = self._trunk(rows)
        if hidden.shape != (len(rows), weight.shape[1]):
            raise ValueError(
                "decode's layers before the last must return one row for each of z, "
                f"{(len(rows), weight.shape[1])}, got {tuple(hidden.shape)}"
            )
        return functional.linear_log_weights(
            hidden.unflatten(0, z.shape[:2]), weight, bias, x, log_ratio, self.likelihood, mask,
            scale=self.scale,
        )  # fmt: skip

    def params(
        self, z: Tensor, size: int | None = None, context: Tensor | None = None
    ) -> tuple[Any, ...]:
        """The likelihood's parameters of z (B, K, Z): numbers, or tensors that broadcast to
        (B, K, D); the first is (B, K, D) where the likelihood has a kernel.

        Args:
            z: latents, which decode sees as rows, (B·K, Z).
            size: D, if it is known.
            context: (B, *shape), repeated for the samples of each example.

        Raises:
            TypeError, ValueError: if decode returns something else.
        """
        if self._decoded_dtype is not None:
            z = z.to(self._decoded_dtype)
        given = z if self.takes_samples else z.flatten(0, 1)
        told: tuple[Tensor, ...] = ()
        if context is not None and self.takes_samples:
            told = (context.unsqueeze(1),)
        elif context is not None:
            told = (context.repeat_interleave(z.shape[1], 0),)
        parts = self.likelihood.unpack(with_scale(self.decode(given, *told), self.scale))
        leading, first = given.shape[:-1], parts[0]
        if isinstance(first, Tensor) and first.dim() > len(leading):
            self.shape = tuple(first.shape[len(leading) :])
            size = math.prod(self.shape) if size is None else size
        shaped = [_by_sample(part, leading, z.shape[:2], size) for part in parts]
        tensors = [part for part in shaped if isinstance(part, Tensor)]
        sizes = {part.shape[-1] for part in tensors if part.dim() > 0} - {1}
        found = sizes.pop() if len(sizes) == 1 else 1
        by_row = any(part.dim() == 3 and part.shape[:2] == z.shape[:2] for part in tensors)
        if not by_row or sizes or (size is not None and found != size):
            raise ValueError(self._wrong_shapes(given, parts, size))
        if self.likelihood.kernel is not None and isinstance(shaped[0], Tensor):
            shaped[0] = shaped[0].expand(*z.shape[:2], found)
        self._look(shaped[0])
        return tuple(shaped)

    def _wrong_shapes(self, z: Tensor, parts: tuple[Any, ...], size: int | None) -> str:
        names = ", ".join(self.likelihood.params)
        got = ", ".join(
            str(tuple(part.shape)) if isinstance(part, Tensor) else str(part) for part in parts
        )
        wanted = f"{tuple(z.shape[:-1])} and then D{'' if size is None else f' = {size}'} elements"
        hint = "" if self.takes_samples else (
            "; a decoder of (B, K, Z) says so by the attribute takes_samples = True"
        )  # fmt: skip
        return (
            f"decode must return {names} of shape {wanted}, for z of shape {tuple(z.shape)}; "
            f"got {got}{hint}"
        )

    # --- what looks wrong ---------------------------------------------------------------------

    def _look(self, first: Any) -> None:
        """Note the range of a first parameter, as long as it may be the wrong one."""
        if self._looks == 0 or not isinstance(first, Tensor) or first.is_meta:
            return
        if self.likelihood.doubtful is None:
            return
        self._looks -= 1
        low, high = first.detach().aminmax()
        self._seen += first.numel()
        if self._range is not None:
            low, high = torch.minimum(low, self._range[0]), torch.maximum(high, self._range[1])
        self._range = low, high
        if first.device.type == "cpu" and self._doubt() is None:
            self._looks = 0

    def _look_at_values(self, params: Params) -> None:
        """Note that parameters are none that the likelihood has; of the first decodes, on a CPU."""
        parts = params if isinstance(params, tuple) else (params,)
        values = tuple(torch.as_tensor(part).detach() for part in parts)
        if self._value_looks == 0 or not all(t.is_cpu and t.numel() for t in values):
            return
        self._value_looks -= 1
        try:
            self.likelihood.check_values(values)
        except ValueError as error:
            self._wrong, self._value_looks = str(error), 0

    def _doubt(self) -> str | None:
        if self._range is None:
            return None
        low, high = (float(t) for t in self._range)
        return self.likelihood.doubt_params(low, high)

    def remarks(self, x: Tensor) -> tuple[str, ...]:
        """What looks wrong about the model and its data, in plain words, after an evaluation."""
        said = [self.likelihood.doubt_data(x)]
        if self._seen >= _ENOUGH:
            said.append(self._doubt())
        if self._wrong is not None:
            said.append(f"The decoder gives no parameters of the likelihood: {self._wrong}.")
        if names := always_training(self.modules):
            said.append(
                f"{names[0]} was exported in training mode, which no evaluation mode changes: "
                "export it after eval()."
            )
        return tuple(one for one in said if one is not None)


def _by_sample(part: Any, leading: torch.Size, samples: torch.Size, size: int | None) -> Any:
    """A parameter that decode returned for `leading` latents: (B, K, D) or (B, K, 1) where those
    come first, else (D,), or a number, which all share."""
    if not isinstance(part, Tensor) or part.dim() == 0:
        return part
    n = len(leading)
    if part.dim() == n + 2 and part.shape[:-1] == (1, *leading):
        part = part.squeeze(0)
    shared = part.dim() == 1 and part.shape[0] == size and (size != 1 or part.shape != leading)
    if not shared and part.shape[:n] == leading:
        return part.reshape(*samples, -1)
    return part.reshape(-1)


def _ends_in_linear(decode: Any) -> bool:
    """Whether `decode` is a plain Sequential with a plain linear layer at its end, no hooks."""
    return (
        type(decode) is nn.Sequential
        and len(decode) > 0
        and type(decode[-1]) is nn.Linear
        and not hooked(decode)
        and not hooked(decode[-1])
    )
