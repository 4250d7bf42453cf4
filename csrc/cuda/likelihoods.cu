// Choice of the likelihood's kernels at run time, and the way iwae goes where an example does not
// fit in a block.
#include "likelihoods.h"

#include "launch.cuh"

namespace dvae::cuda {
namespace {

// Σ over no rows.
cudaError_t clear_parts(const LogWeightGrads& p, cudaStream_t stream) {
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
    using L = typename decltype(l)::type;
    return p.mask.seen != nullptr ? MaskedLogWeightsOf<L>::launch(dtype, scale, p, stream)
                                  : LogWeightsOf<L>::launch(dtype, scale, p, stream);
  });
}

cudaError_t log_weights_backward(LikelihoodKind likelihood, DType dtype, ScaleKind scale,
                                 const LogWeightGrads& p, cudaStream_t stream) {
  if (p.size == 0) return cudaSuccess;
  if (p.begin >= p.end) return clear_parts(p, stream);
  return with_likelihood(likelihood, [&](auto l) {
    using L = typename decltype(l)::type;
    return p.mask.seen != nullptr ? MaskedLogWeightsBackwardOf<L>::launch(dtype, scale, p, stream)
                                  : LogWeightsBackwardOf<L>::launch(dtype, scale, p, stream);
  });
}

cudaError_t iwae(LikelihoodKind likelihood, DType dtype, ScaleKind scale, const Iwae& given,
                 cudaStream_t stream) {
  Iwae p = given;
  p.bias = nullptr;
  p.first_row = 0;
  if (scale != ScaleKind::kShared && p.rows > 0) {
    bool fits = false;
    const cudaError_t error = with_likelihood(likelihood, [&](auto l) {
      using L = typename decltype(l)::type;
      return p.mask.seen != nullptr ? MaskedIwaeOf<L>::launch(dtype, p, fits, stream)
                                    : IwaeOf<L>::launch(dtype, p, fits, stream);
    });
    if (fits || error != cudaSuccess) return error;
  }
  const LogWeights sweep{p, 0, p.rows * p.samples, p.mask};
  if (const cudaError_t error = log_weights(likelihood, dtype, scale, sweep, stream)) return error;
  if (const cudaError_t error = iwae_normalise(dtype, p, stream)) return error;
  LogWeightGrads gradient{};
  static_cast<DecoderParams&>(gradient) = p;
  gradient.grad = p.log_w;  // by now the normalised weights
  gradient.grad_params = p.grad_params;
  gradient.grad_scale = p.grad_scale;
  gradient.multiplier = p.multiplier;
  gradient.end = sweep.end;
  gradient.scale_parts = p.scale_parts;
  gradient.parts = p.parts;
  gradient.mask = p.mask;
  return log_weights_backward(likelihood, dtype, scale, gradient, stream);
}

}  // namespace dvae::cuda
