"""What ``torch.load`` may make of a model that ``torch.save`` has pickled whole.

With weights_only, its default, it runs no code of the file's: it makes objects of classes that are
known to it alone. Those of a model made by name are told here. `save_model` needs none of this.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dvae_fast import corruptions, likelihoods
from dvae_fast.likelihoods import links
from dvae_fast.models import bernoulli, decoders, encoders, gaussian, layers, priors, two_layer
from dvae_fast.models.config import ModelConfig
from dvae_fast.objectives import Objective

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["PICKLED"]


def _made_in(*modules: ModuleType) -> list[Any]:
    """The public classes of these modules that are the package's own."""
    named = [value for module in modules for name, value in vars(module).items() if name[0] != "_"]
    own = __name__.partition(".")[0]
    return [v for v in named if isinstance(v, type) and v.__module__.partition(".")[0] == own]


#: classes, and functions that a likelihood's links hold
PICKLED = (
    *_made_in(bernoulli, gaussian, two_layer),
    *_made_in(corruptions, likelihoods, links, decoders, encoders, layers, priors),
    *(v for v in vars(links).values() if isinstance(v, FunctionType) and v.__name__[0] == "_"),
    ModelConfig, Objective,
    nn.Sequential, nn.Linear, nn.Conv2d, nn.GRU, *layers.ACTIVATIONS.values(),
)  # fmt: skip

torch.serialization.add_safe_globals(list(dict.fromkeys(PICKLED)))
