"""Fused kernels for denoising variational autoencoders, and a thin layer on top."""

from dvae_fast._version import __version__
from dvae_fast.build_info import build_info
from dvae_fast.evaluate import LikelihoodEstimate, estimate_log_likelihood
from dvae_fast.functional import (
    corrupt,
    iwae_loss,
    latent_log_ratio,
    linear_log_weights,
    log_weights,
    logmeanexp,
    mixture_log_ratio,
    sample_latent,
    set_validation,
)

__all__ = [
    "LikelihoodEstimate",
    "__version__",
    "build_info",
    "corrupt",
    "estimate_log_likelihood",
    "iwae_loss",
    "latent_log_ratio",
    "linear_log_weights",
    "log_weights",
    "logmeanexp",
    "mixture_log_ratio",
    "sample_latent",
    "set_validation",
]
