"""The options of a model, each in one place: its name, default, help and choices.

The constructors, `Autoencoder.config` and `from_config`, a run's configuration and the command
line are made from the fields of `ModelConfig`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from dvae_fast._checks import check_bool, check_choice, check_size, check_sizes, nearest_choice
from dvae_fast.corruptions import (
    Corruption,
    CorruptionFunction,
    FunctionCorruption,
    corruption_from,
    describe_corruption,
)
from dvae_fast.corruptions.basic import is_identity
from dvae_fast.likelihoods import NAMED, Likelihood
from dvae_fast.models.encoders import ENCODERS
from dvae_fast.models.layers import ACTIVATIONS
from dvae_fast.models.posterior import COVARIANCES
from dvae_fast.models.priors import PRIORS, Prior
from dvae_fast.models.reverse import REVERSES
from dvae_fast.objectives import ESTIMATORS, OBJECTIVES, Objective

if TYPE_CHECKING:
    from dvae_fast.models.base import Autoencoder

__all__ = [
    "DECODERS_BY_NAME",
    "GROUPS",
    "MODELS",
    "ConstructorSignature",
    "ModelConfig",
    "bind_options",
    "default_samples",
    "describe_option",
    "make_model",
    "option",
    "option_from",
    "option_kind",
    "options_of",
    "own_parts",
    "register",
]

#: The models by the name used in configurations and on the command line.
MODELS: dict[str, type[Autoencoder]] = {}
#: the decoder that the likelihood makes: a perceptron with the likelihood's head
DECODERS_BY_NAME = ("mlp",)

#: what options are about, in the order in which they are shown
GROUPS = DATA, MODEL, OBJECTIVE, TRAINING, OUTPUT = (
    "Data", "Model", "Objective", "Training", "Output",
)  # fmt: skip

_GAUSSIAN = ("vae", "iwae", "dvae", "diwae")
_MIXED = ("dvae", "diwae", "two_layer")


def option(
    default: Any,
    help: str,
    *,
    choices: Collection[str] | None = None,
    of: tuple[str, ...] | None = None,
    short: str | None = None,
    own: str = "",
    least: int = 1,
    shown: bool = True,
    group: str = MODEL,
) -> Any:
    """A field of a configuration.

    Args:
        default: its value where none is given.
        help: what it is, for the documentation and the command line.
        choices: the names it may have, from the registry that owns them.
        of: the models that have it; None for all.
        short: of one letter, for the command line.
        own: what may be given in the place of a name, in Python only.
        least: of a number.
        shown: whether the command line has it.
        group: of the options that it stands with there, one of `GROUPS`.
    """
    metadata = {
        "help": help, "choices": choices, "of": of, "short": short, "own": own, "least": least,
        "shown": shown, "group": group,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


# Of a number: more copies, samples or latents have no index in the noise.
_MOST = 1 << 32


@dataclass(frozen=True)
class ModelConfig:
    """The options of a model but for what its data says: sizes, modules, bound.

    A part that is a string is one of the field's choices; any other is the thing itself. See
    :func:`options_of` for which model has which.

    Raises:
        TypeError, ValueError: naming the option, the rule and the value.
    """

    latent_size: int = option(50, "Latent dimensions.")
    hidden_sizes: tuple[int, ...] = option(
        (200, 200), "Hidden layers of the encoder, from the data on; may be none."
    )
    _: KW_ONLY
    decoder_hidden_sizes: tuple[int, ...] | None = option(
        None,
        "Hidden layers of the decoder, from the latents on. Default: the encoder's in reverse.",
    )
    activation: str = option("softplus", "Of the hidden layers.", choices=ACTIVATIONS)
    encoder: str | nn.Module = option(
        "mlp",
        "What encodes x; gru and gru_2d take the first of the hidden sizes for their recurrent "
        "layer.",
        choices=ENCODERS,
        own="Or a module: rows (N, D) → mean and log-variance (N, Z), or a distribution with "
        "rsample and log_prob; logits of binary latents.",
    )
    decoder: str | nn.Module = option(
        "mlp",
        "What decodes z.",
        choices=DECODERS_BY_NAME,
        own="Or a module: rows (N, Z) → the likelihood's parameters.",
    )
    prior: str | Prior = option(
        "standard",
        "p(z): standard is N(0, I), or probability ½ of each binary latent; mixture, of Gaussians; "
        "vamp, the posteriors of pseudo-inputs.",
        choices=PRIORS,
        own="Or an object with log_prob(z), (..., Z) → (...), and sample(n, generator), (n, Z).",
    )
    prior_components: int = option(
        100, "Components of the prior mixture, or pseudo-inputs of vamp."
    )
    context_size: int = option(
        0,
        "Numbers that the networks are told besides x, or classes of a label; 0: none.",
        least=0,
        own="See loss; encoders and decoders of one's own are called as (x, context) and (z, "
        "context).",
    )
    covariance: str = option(
        "diagonal",
        "Of the Gaussian q(z|x).",
        choices=COVARIANCES,
        of=_GAUSSIAN,
        own="For full, encode gives a triangular factor (..., Z, Z) in the place of log_var.",
    )
    likelihood: str | Likelihood = option(
        "bernoulli", "p(x|z).", choices=NAMED, own="Or a Likelihood."
    )
    corruption: Corruption | CorruptionFunction | None = option(
        None,
        "p(x̃|x), one of dvae_fast.corruptions or a function; the level of a Learnable is among "
        "the model's parameters. Default of dvae and diwae: SaltAndPepper(0.1), else none.",
        of=("dvae", "diwae", "bernoulli", "two_layer"),
    )
    copies: int = option(
        1,
        "M, corruptions of each example; without corruption, groups of samples.",
        short="-M",
        group=OBJECTIVE,
    )
    samples: int | None = option(
        None,
        "K, latent samples of each corruption. Default: 5 inside the logarithm or with vimco, "
        "else 1.",
        short="-K",
        group=OBJECTIVE,
    )
    objective: str | Objective | None = option(
        None,
        "The bound. Default: the model's own.",
        choices=OBJECTIVES,
        own="Or an Objective.",
        group=OBJECTIVE,
    )
    estimator: str = option(
        "standard", "Of the encoder's gradient.", choices=ESTIMATORS, group=OBJECTIVE
    )
    outer_samples: int = option(
        10,
        "J, further corruptions in the density of sivi and iwhvi.",
        of=_MIXED,
        least=0,
        group=OBJECTIVE,
    )
    reverse: str | nn.Module = option(
        "mlp",
        "What moves the reverse proposal of iwhvi.",
        choices=REVERSES,
        of=_MIXED,
        own="Or a module: rows (N, Z) and x (N, D), a context beside it → what moves the "
        "corruption's parameters, (N, D), or (N, 2 D) of salt and pepper and of Gaussian noise.",
        group=OBJECTIVE,
    )
    reverse_hidden_sizes: tuple[int, ...] = option(
        (200,), "Hidden layers of the reverse proposal.", of=_MIXED, group=OBJECTIVE
    )
    learn_prior: bool = option(
        False, "Learn the probability of each latent, rather than ½.", of=("bernoulli",)
    )
    upper_latent_size: int = option(50, "Dimensions of the upper latents.", of=("two_layer",))
    upper_hidden_sizes: tuple[int, ...] = option(
        (100, 100), "Hidden layers between the two layers of latents.", of=("two_layer",)
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(ModelConfig):
            value, kind = getattr(self, field.name), option_kind(ModelConfig, field.name)
            if value is None and field.default is None:
                continue
            if kind == tuple[int, ...]:
                value = check_sizes(field.name, value)
                object.__setattr__(self, field.name, value)
            elif kind is int:
                value = check_size(field.name, value, field.metadata["least"])
                if value > _MOST:
                    raise ValueError(f"{field.name} must be <= 2**32, got {value}")
                object.__setattr__(self, field.name, value)
            elif kind is bool:
                object.__setattr__(self, field.name, check_bool(field.name, value))
            elif isinstance(value, str) and field.metadata["choices"] is not None:
                check_choice(field.name, value, field.metadata["choices"])


def option_kind(config: type, name: str) -> Any:
    """What the option is as a configuration holds it: int, float, str, bool or tuple[int, ...]."""
    hint = _hints(config)[name]
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return hint if typing.get_origin(hint) is tuple or not kinds else kinds[0]


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(config: type) -> dict[str, Any]:
    if config not in _HINTS:
        _HINTS[config] = typing.get_type_hints(config)
    return _HINTS[config]


# --- which model has which ------------------------------------------------------------------------


def options_of(model: type[Autoencoder]) -> dict[str, dataclasses.Field[Any]]:
    """The options that the model has, by name."""
    return {
        field.name: field
        for field in dataclasses.fields(ModelConfig)
        if field.metadata["of"] is None or model.name in field.metadata["of"]
    }


def bind_options(
    model: type[Autoencoder], args: Sequence[Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a constructor was called with, by name; None counts as not given.

    Raises:
        TypeError: for an option that the model has not, or one given twice.
    """
    known = options_of(model)
    positional = [name for name, field in known.items() if not field.kw_only]
    if len(args) > len(positional):
        raise TypeError(
            f"{model.__name__} takes data_size, {', '.join(positional)} by position; the rest by "
            f"name; got {1 + len(args)} arguments"
        )
    by_position = dict(zip(positional, args, strict=False))
    for name in options:
        if name in by_position:
            raise TypeError(f"{name} must be given once, by position or by name")
        if name not in known:
            raise TypeError(nearest_choice(f"an option of {model.__name__}", name, known))
    return {k: v for k, v in (by_position | dict(options)).items() if v is not None}


class ConstructorSignature:
    """``__signature__`` of a model's class: what `inspect.signature` and `help` show."""

    def __get__(self, instance: object, owner: type[Autoencoder]) -> inspect.Signature:
        # An instance is called with data; a subclass may have a constructor of its own.
        maker = next(c for c in owner.__mro__ if "__init__" in vars(c))
        if instance is not None or "__signature__" not in vars(maker):
            raise AttributeError("__signature__")
        parameters = [inspect.Parameter("data_size", _BY_POSITION, annotation=int | Sequence[int])]
        for name, field in options_of(owner).items():
            kind = inspect.Parameter.KEYWORD_ONLY if field.kw_only else _BY_POSITION
            default = owner.defaults.get(name, field.default)
            annotation = _hints(ModelConfig)[name]
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
        for name, annotation in (("image_shape", Sequence[int]), ("data_mean", Tensor)):
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=annotation | None,
                )
            )
        return inspect.Signature(parameters, return_annotation=owner)


_BY_POSITION = inspect.Parameter.POSITIONAL_OR_KEYWORD
_M = TypeVar("_M", bound="type[Autoencoder]")


def register(model: _M) -> _M:
    """Put a model's class into `MODELS`, and its options into its documentation."""
    MODELS[model.name] = model
    lines = [
        "data_size: D, or the shape of an example, (C, H, W) say, which samples then have; x is",
        "    (B, D) or of that shape.",
    ]
    for name, field in options_of(model).items():
        choices = field.metadata["choices"]
        valid = f"One of {', '.join(choices)}." if choices else ""
        words = " ".join(filter(None, (field.metadata["help"], valid, field.metadata["own"])))
        lines += textwrap.wrap(f"{name}: {words}", 92, subsequent_indent="    ")
    lines += [
        "image_shape: (H, W) or (C, H, W), whose product is D; for an encoder that reads images.",
        "data_mean: (D,), where the decoder's bias starts: in [0, 1], of counts >= 0.",
    ]
    model.__doc__ = f"{inspect.cleandoc(model.__doc__ or '')}\n\nArgs:\n    " + "\n    ".join(lines)
    return model


def default_samples(objective: Objective) -> int:
    """K where none is given: 5 inside the logarithm, or for a baseline made of the others."""
    return 1 if objective.bound.outside and not objective.gradient.score_function else 5


def make_model(
    name: str, data_size: int | Sequence[int], *sizes: Any, **options: Any
) -> Autoencoder:
    """The model called `name`; the rest is its constructor's, None meaning its default.

    For a model without corruption ``corruption`` may be None or Identity.

    Raises:
        TypeError, ValueError: if the name is not one of `MODELS`, or an argument is wrong.
    """
    check_choice("model", name, MODELS)
    corruption = options.get("corruption")
    if "corruption" not in options_of(MODELS[name]) and "corruption" in options:
        if not is_identity(corruption):
            raise ValueError(f"corruption must be None for {name}, got {corruption}")
        del options["corruption"]
    return MODELS[name](data_size, *sizes, **options)


# --- as JSON holds them ---------------------------------------------------------------------------

#: options that may be a thing of the user's own, which no name builds again
_MODULE = "module"


def describe_option(name: str, value: Any) -> Any:
    """An option's value, JSON-able; a thing of one's own by the name of its class alone."""
    if isinstance(value, Objective):
        return value.to_dict()
    if isinstance(value, Likelihood) and type(value) is type(NAMED.get(value.kind)):
        return value.kind
    if isinstance(value, Corruption):
        with contextlib.suppress(ValueError):  # one's own, or made of it
            return describe_corruption(value)
    if isinstance(value, FunctionCorruption):
        return {_MODULE: f"{value}"}
    if isinstance(value, tuple):
        return list(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return {_MODULE: f"{type(value).__module__}.{type(value).__qualname__}"}


def own_parts(config: Mapping[str, Any]) -> dict[str, str]:
    """The options in an `Autoencoder.config` that are one's own, and the names of their classes."""
    marked = {k: v for k, v in config.items() if isinstance(v, Mapping) and v.keys() == {_MODULE}}
    return {name: value[_MODULE] for name, value in marked.items()}


def option_from(name: str, value: Any, own: dict[str, Any]) -> Any:
    """What `describe_option` described; what it could not is taken out of `own`.

    Raises:
        ValueError: if that is not there, or a value is wrong.
    """
    if isinstance(value, Mapping) and value.keys() == {_MODULE}:
        if name not in own:
            raise ValueError(
                f"{name} must be given: the model has one of its own, {value[_MODULE]}, which no "
                "name builds again"
            )
        return own.pop(name)
    if name == "corruption" and value is not None:
        return corruption_from(value)
    return _objective_from(value) if name == "objective" else value


def _objective_from(config: Any) -> Objective:
    if isinstance(config, Objective):
        return config
    known = [field.name for field in dataclasses.fields(Objective)]
    if not isinstance(config, dict) or "name" not in config or config.keys() - set(known):
        raise ValueError(
            f"config's objective must have the key name and of {', '.join(known)} no others, "
            f"got {config!r}"
        )
    return Objective(**config)
