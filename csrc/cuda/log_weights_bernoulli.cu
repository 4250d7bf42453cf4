#include "likelihoods.h"
#include "log_weights.cuh"

namespace dvae::cuda {

cudaError_t log_weights_bernoulli(DType dtype, ScaleKind, const LogWeights& p,
                                  cudaStream_t stream) {
  return log_weights_of<Bernoulli, ScaleKind::kNone>(dtype, p, stream);
}

}  // namespace dvae::cuda
