// Choice of the likelihood's kernels at run time, and the way iwae goes where an example does not
// fit in a block.
#include "likelihoods.h"

#include "launch.cuh"

namespace dvae::cuda {
namespace {

// Σ over no rows.
cudaError_t clear_parts(const LogWeights& p, cudaStream_t stream) {
  if (p.accumulate) return cudaSuccess;
  for (double* parts : {p.bias_parts, p.scale_parts}) {
    if (parts == nullptr) continue;
    const auto bytes = static_cast<size_t>(p.parts * p.size) * sizeof(double);
    if (const cudaError_t error = cudaMemsetAsync(parts, 0, bytes, stream)) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t log_weights(LikelihoodKind likelihood, DType dtype, ScaleKind scale,
                        const LogWeights& p, cudaStream_t stream) {
  if (p.begin >= p.end) return cudaSuccess;
  return with_likelihood(likelihood, [&](auto l) {
    return LogWeightsOf<typename decltype(l)::type>::launch(dtype, scale, p, stream);
  });
}

cudaError_t log_weights_backward(LikelihoodKind likelihood, DType dtype, ScaleKind scale,
                                 const LogWeights& p, cudaStream_t stream) {
  if (p.size == 0) return cudaSuccess;
  if (p.begin >= p.end) return clear_parts(p, stream);
  return with_likelihood(likelihood, [&](auto l) {
    return LogWeightsBackwardOf<typename decltype(l)::type>::launch(dtype, scale, p, stream);
  });
}

cudaError_t iwae(LikelihoodKind likelihood, DType dtype, ScaleKind scale, const LogWeights& given,
                 cudaStream_t stream) {
  LogWeights p = given;
  p.bias = nullptr;
  p.bias_parts = nullptr;
  p.begin = p.first_row = 0;
  p.end = p.rows * p.samples;
  if (scale != ScaleKind::kShared && p.rows > 0) {
    bool fits = false;
    const cudaError_t error = with_likelihood(likelihood, [&](auto l) {
      return IwaeOf<typename decltype(l)::type>::launch(dtype, p, fits, stream);
    });
    if (fits || error != cudaSuccess) return error;
  }
  if (const cudaError_t error = log_weights(likelihood, dtype, scale, p, stream)) return error;
  if (const cudaError_t error = iwae_normalise(dtype, p, stream)) return error;
  p.grad = p.log_w;  // by now the normalised weights
  return log_weights_backward(likelihood, dtype, scale, p, stream);
}

}  // namespace dvae::cuda
