// The kernels of one struct and one likelihood of likelihoods.h: -DDVAE_KERNEL=IwaeOf
// -DDVAE_LIKELIHOOD=Bernoulli.
#include "iwae.cuh"
#include "log_weights.cuh"
#include "log_weights_backward.cuh"

namespace dvae::cuda {

template struct DVAE_KERNEL<DVAE_LIKELIHOOD>;

}  // namespace dvae::cuda
