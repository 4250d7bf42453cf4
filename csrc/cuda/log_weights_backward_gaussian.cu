#include "likelihoods.h"
#include "log_weights_backward.cuh"

namespace dvae::cuda {

cudaError_t log_weights_backward_gaussian(DType dtype, ScaleKind scale, const LogWeights& p,
                                          cudaStream_t stream) {
  return scale == ScaleKind::kFull
             ? log_weights_backward_of<Gaussian, ScaleKind::kFull>(dtype, p, stream)
             : log_weights_backward_of<Gaussian, ScaleKind::kShared>(dtype, p, stream);
}

}  // namespace dvae::cuda
