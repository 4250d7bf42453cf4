"""VAE, IWAE, DVAE and DIWAE: an encoder, a decoder and the loss, over the fused operators.

The denoising models encode a corrupted x̃ and have the clean x for their target (Im, Ahn, Memisevic,
Bengio, arXiv 1511.06406); VAE and IWAE are the same without corruption. VAE and DVAE average
log w over K samples, IWAE and DIWAE take the logarithm of the mean of w over K samples (Burda,
Grosse, Salakhutdinov, arXiv 1509.00519); any other bound of `dvae_fast.objectives` is one argument
away. `BernoulliLatentModel` has binary latents. Shapes as everywhere: B examples, M groups (one a
corruption), K samples, Z latent and D data dimensions.
"""

from dvae_fast.models import pickled as _pickled  # noqa: F401  (tells torch.load)
from dvae_fast.models.base import Autoencoder
from dvae_fast.models.bernoulli import BernoulliLatentModel, sample_bernoulli_latents
from dvae_fast.models.config import MODELS, ModelConfig, make_model
from dvae_fast.models.decoders import Decoder
from dvae_fast.models.encoders import (
    ENCODERS,
    POOLINGS,
    ConvEncoder,
    GaussianEncoder,
    GRUEncoder,
    make_encoder,
)
from dvae_fast.models.gaussian import DIWAE, DVAE, IWAE, VAE, LatentVariableModel
from dvae_fast.models.layers import ACTIVATIONS, MLP, Softplus
from dvae_fast.models.posterior import COVARIANCES, gaussian_log_ratio, sample_gaussian
from dvae_fast.models.priors import PRIORS, GaussianMixture, Prior, StandardNormal, VampPrior
from dvae_fast.models.saving import load_model, save_model
from dvae_fast.models.two_layer import TwoLayerModel

__all__ = [
    "ACTIVATIONS",
    "COVARIANCES",
    "DIWAE",
    "DVAE",
    "ENCODERS",
    "IWAE",
    "MLP",
    "MODELS",
    "POOLINGS",
    "PRIORS",
    "VAE",
    "Autoencoder",
    "BernoulliLatentModel",
    "ConvEncoder",
    "Decoder",
    "GRUEncoder",
    "GaussianEncoder",
    "GaussianMixture",
    "LatentVariableModel",
    "ModelConfig",
    "Prior",
    "Softplus",
    "StandardNormal",
    "TwoLayerModel",
    "VampPrior",
    "gaussian_log_ratio",
    "load_model",
    "make_encoder",
    "make_model",
    "sample_bernoulli_latents",
    "sample_gaussian",
    "save_model",
]
