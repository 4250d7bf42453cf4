#include "iwae.cuh"

namespace dvae::cuda {

Fused iwae_gaussian(DType dtype, ScaleKind, const LogWeights& p, cudaStream_t stream) {
  return iwae_of<Gaussian, ScaleKind::kFull>(dtype, p, stream);
}

}  // namespace dvae::cuda
