#include "iwae.cuh"

namespace dvae::cuda {

Fused iwae_bernoulli(DType dtype, ScaleKind, const LogWeights& p, cudaStream_t stream) {
  return iwae_of<Bernoulli, ScaleKind::kNone>(dtype, p, stream);
}

}  // namespace dvae::cuda
