"""Fused kernels for denoising variational autoencoders, and a thin layer on top."""

from typing import TYPE_CHECKING, Any

from dvae_fast._build import build_info
from dvae_fast._checks import set_validation
from dvae_fast._version import __version__
from dvae_fast.corruptions import (
    AdditiveGaussian,
    BitFlip,
    Compose,
    Corruption,
    Identity,
    Learnable,
    Masking,
    SaltAndPepper,
    corrupt,
)
from dvae_fast.evaluation import (
    AISEstimate,
    BidirectionalEstimate,
    EvaluationProgress,
    Expectation,
    LikelihoodEstimate,
    annealed_importance_sampling,
    bidirectional,
    bidirectional_monte_carlo,
    estimate_from_log_weights,
    estimate_log_likelihood,
    importance_expectation,
    impute,
)
from dvae_fast.functional import (
    iwae_loss,
    latent_log_ratio,
    linear_log_weights,
    log_weights,
    logmeanexp,
    mixture_log_ratio,
    sample_latent,
)
from dvae_fast.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretisedLogistic,
    Gaussian,
    Laplace,
    Likelihood,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from dvae_fast.models import DIWAE, DVAE, IWAE, VAE

if TYPE_CHECKING:
    from dvae_fast.checking import check

__all__ = [
    "DIWAE",
    "DVAE",
    "IWAE",
    "VAE",
    "AISEstimate",
    "AdditiveGaussian",
    "Bernoulli",
    "BidirectionalEstimate",
    "BitFlip",
    "Categorical",
    "Compose",
    "ContinuousBernoulli",
    "Corruption",
    "DiscretisedLogistic",
    "EvaluationProgress",
    "Expectation",
    "Gaussian",
    "Identity",
    "Laplace",
    "Learnable",
    "Likelihood",
    "LikelihoodEstimate",
    "Masking",
    "NegativeBinomial",
    "Poisson",
    "SaltAndPepper",
    "ZeroInflatedNegativeBinomial",
    "__version__",
    "annealed_importance_sampling",
    "bidirectional",
    "bidirectional_monte_carlo",
    "build_info",
    "check",
    "corrupt",
    "estimate_from_log_weights",
    "estimate_log_likelihood",
    "importance_expectation",
    "impute",
    "iwae_loss",
    "latent_log_ratio",
    "linear_log_weights",
    "log_weights",
    "logmeanexp",
    "mixture_log_ratio",
    "sample_latent",
    "set_validation",
]


def __getattr__(name: str) -> Any:
    if name == "check":  # with its table of cases, which nothing else needs
        from dvae_fast.checking import check

        return check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
