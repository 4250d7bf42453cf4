"""Fused kernels for denoising variational autoencoders, and a thin layer on top."""

from dvae_fast._version import __version__
from dvae_fast.functional import (
    corrupt,
    iwae_loss,
    latent_log_ratio,
    linear_log_weights,
    log_weights,
    logmeanexp,
    sample_latent,
    set_validation,
)

__all__ = [
    "__version__",
    "corrupt",
    "iwae_loss",
    "latent_log_ratio",
    "linear_log_weights",
    "log_weights",
    "logmeanexp",
    "sample_latent",
    "set_validation",
]
