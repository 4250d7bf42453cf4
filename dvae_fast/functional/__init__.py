"""The public drop-in functions: argument checks, shapes, and autograd.

Shapes: B examples, M corruptions, K samples, Z latent and D data dimensions; ``*L`` is any
number of leading dimensions, usually none or M. Every function draws or computes in one fused
kernel (`torch.ops.dvae_fast`), saves inputs and seeds rather than noise, and treats NaN in one
example as that example's alone.

Under ``torch.autocast``, latents are sampled in float32, log-weights take decoder outputs in
whatever dtype autocast produced and accumulate in float32, and `linear_log_weights` runs its
matrix product in autocast's dtype.
"""

from dvae_fast.functional.latent import latent_log_ratio, mixture_log_ratio, sample_latent
from dvae_fast.functional.linear import DENSE_ACTIVATIONS, linear_log_weights, mlp_log_weights
from dvae_fast.functional.log_weights import iwae_loss, log_weights, logmeanexp
from dvae_fast.functional.softplus import softplus

__all__ = [
    "DENSE_ACTIVATIONS",
    "iwae_loss",
    "latent_log_ratio",
    "linear_log_weights",
    "log_weights",
    "logmeanexp",
    "mixture_log_ratio",
    "mlp_log_weights",
    "sample_latent",
    "softplus",
]
