// The kernels of each likelihood, each in a file of its own, so that they compile side by side.
#pragma once

#include "kernels.h"

namespace dvae::cuda {

cudaError_t log_weights_bernoulli(DType, ScaleKind, const LogWeights&, cudaStream_t);
cudaError_t log_weights_gaussian(DType, ScaleKind, const LogWeights&, cudaStream_t);
cudaError_t log_weights_backward_bernoulli(DType, ScaleKind, const LogWeights&, cudaStream_t);
cudaError_t log_weights_backward_gaussian(DType, ScaleKind, const LogWeights&, cudaStream_t);
// Whether one example fits in a block; if so, launched.
struct Fused {
  bool fits;
  cudaError_t error;
};
Fused iwae_bernoulli(DType, ScaleKind, const LogWeights&, cudaStream_t);
Fused iwae_gaussian(DType, ScaleKind, const LogWeights&, cudaStream_t);

}  // namespace dvae::cuda
