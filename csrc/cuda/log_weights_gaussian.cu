#include "likelihoods.h"
#include "log_weights.cuh"

namespace dvae::cuda {

cudaError_t log_weights_gaussian(DType dtype, ScaleKind scale, const LogWeights& p,
                                 cudaStream_t stream) {
  return scale == ScaleKind::kFull ? log_weights_of<Gaussian, ScaleKind::kFull>(dtype, p, stream)
                                   : log_weights_of<Gaussian, ScaleKind::kShared>(dtype, p, stream);
}

}  // namespace dvae::cuda
