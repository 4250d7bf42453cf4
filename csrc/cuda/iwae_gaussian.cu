#include "iwae.cuh"

namespace dvae::cuda {

template Fused iwae_of<Gaussian>(DType, const LogWeights&, cudaStream_t);

}  // namespace dvae::cuda
