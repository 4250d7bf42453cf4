"""Corruption distributions p(x̃|x)."""

from dvae_fast.corruptions.base import (
    Corruption,
    CorruptionFunction,
    FunctionCorruption,
    as_corruption,
)
from dvae_fast.corruptions.basic import (
    CORRUPTIONS,
    AdditiveGaussian,
    BitFlip,
    FusedCorruption,
    Identity,
    Masking,
    RateCorruption,
    SaltAndPepper,
    make_corruption,
    rates_from_mean,
)
from dvae_fast.corruptions.compose import Compose
from dvae_fast.corruptions.config import corruption_from, describe_corruption
from dvae_fast.corruptions.draw import corrupt
from dvae_fast.corruptions.learnable import LEVEL_ESTIMATORS, Learnable, score_function_surrogate

__all__ = [
    "CORRUPTIONS",
    "LEVEL_ESTIMATORS",
    "AdditiveGaussian",
    "BitFlip",
    "Compose",
    "Corruption",
    "CorruptionFunction",
    "FunctionCorruption",
    "FusedCorruption",
    "Identity",
    "Learnable",
    "Masking",
    "RateCorruption",
    "SaltAndPepper",
    "as_corruption",
    "corrupt",
    "corruption_from",
    "describe_corruption",
    "make_corruption",
    "rates_from_mean",
    "score_function_surrogate",
]
