#include "iwae.cuh"

namespace dvae::cuda {

template Fused iwae_of<NegativeBinomial>(DType, const LogWeights&, cudaStream_t);

}  // namespace dvae::cuda
