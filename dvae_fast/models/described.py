"""What a model is, as JSON, and the model that this describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dvae_fast._checks import check_choice
from dvae_fast.models.config import MODELS, describe_option, option_from, options_of
from dvae_fast.models.shapes import Shaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dvae_fast.corruptions import Corruption
    from dvae_fast.models.base import Autoencoder
    from dvae_fast.models.config import ModelConfig
    from dvae_fast.objectives import Objective

__all__ = ["Described"]


class Described(Shaped):
    """A module of `MODELS` that its options describe."""

    name: ClassVar[str] = ""
    options: ModelConfig
    objective: Objective
    corruption: Corruption | None
    copies: int
    samples: int

    def config(self) -> dict[str, Any]:
        """What `from_config` needs to build this model again, parameters apart; JSON-able.

        A module of one's own is there by the name of its class, which cannot be built again.
        """
        size = list(self.shape) if self._shaped else self.data_size
        config: dict[str, Any] = {"model": self.name, "data_size": size}
        if self.image_shape is not None:
            config["image_shape"] = list(self.image_shape)
        now = {"objective": self.objective, "estimator": self.objective.estimator}
        for name in options_of(type(self)):  # type: ignore[arg-type]
            value = getattr(self.options, name)
            if name in ("copies", "samples", "likelihood", "corruption"):
                value = getattr(self, name)  # may have changed since
            config[name] = describe_option(name, now.get(name, value))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **own: Any) -> Autoencoder:
        """The model that `config` describes, with fresh parameters.

        Args:
            config: of `config`.
            own: by the option's name, each module that the model has of one's own.

        Raises:
            ValueError: if the model is not this class (any, from the base), a key is missing or
                unknown, a value is wrong, or a module of one's own is not given.
        """
        options = dict(config)
        name = options.pop("model", None)
        check_choice("config's model", name, [n for n, c in MODELS.items() if issubclass(c, cls)])
        model = MODELS[name]
        known = {"data_size", "image_shape", *options_of(model)}
        for key in options:
            check_choice(f"a key in the config of a {name}", key, known)
        if "data_size" not in options:
            raise ValueError(f"config must have the key data_size, got {', '.join(config)}")
        options = {key: option_from(key, value, own) for key, value in options.items()}
        if own:
            raise ValueError(
                f"{next(iter(own))} must be left out: the model's is made by name, not one's own"
            )
        return model(**options)

    def extra_repr(self) -> str:
        """What the parts do not show."""
        parts = [f"copies={self.copies}", f"samples={self.samples}", f"objective={self.objective}"]
        return ", ".join([f"corruption={self.corruption}"] * (self.corruption is not None) + parts)
