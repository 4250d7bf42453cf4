#include "iwae.cuh"

namespace dvae::cuda {

template Fused iwae_of<Bernoulli>(DType, const LogWeights&, cudaStream_t);

}  // namespace dvae::cuda
