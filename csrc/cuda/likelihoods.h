// The kernels of a likelihood, which a file for each likelihood and operation instantiates, so that
// they compile side by side.
#pragma once

#include "../core/likelihoods.h"
#include "kernels.h"

namespace dvae::cuda {

template <class L>
cudaError_t log_weights_of(DType, ScaleKind, const LogWeights&, cudaStream_t);
template <class L>
cudaError_t log_weights_backward_of(DType, ScaleKind, const LogWeights&, cudaStream_t);
// Whether one example fits in a block; if so, launched. Not for a shared scale.
struct Fused {
  bool fits;
  cudaError_t error;
};
template <class L>
Fused iwae_of(DType, const LogWeights&, cudaStream_t);

}  // namespace dvae::cuda
