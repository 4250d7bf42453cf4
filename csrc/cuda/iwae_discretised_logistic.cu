#include "iwae.cuh"

namespace dvae::cuda {

template Fused iwae_of<DiscretisedLogistic>(DType, const LogWeights&, cudaStream_t);

}  // namespace dvae::cuda
