// The kernels over rows of which a mask leaves out elements. Where it leaves many, the kernels pass
// over all, and choose. Where it leaves few, an example's observed dimensions are made rows of
// their own, shorter ones, for which the kernels are those of whole rows.
//
// Of the values of what is not observed nothing follows, and its gradients are 0.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels.h"

namespace dvae::cpu {

constexpr int64_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// (examples, size), not 0 where an element is observed; row n has row n % examples of it. Counted
// where an example's rows are, by their thread.
struct Mask {
  const uint8_t* observed;
  int64_t examples, size;
  // A, laid out as a scale that rows share: −row_constant of each element; null where there is no
  // such scale, or no logarithm of it.
  const void* constants;
  bool all;  // of all examples

  Mask(const uint8_t* observed_in, int64_t examples_in, int64_t size_in, const void* constants_in);
  const uint8_t* row(int64_t n) const { return observed + n % examples * size; }
  // How many of example n's are observed.
  int64_t count(int64_t n) const;
};

// As in the table of kernels, which they call; no mask (null) is every element observed.
// params must not be x, bias or a scale; grad_params may be params.
void log_weights(const Mask*, LikelihoodKind, DType, const LogWeightParams&, ScaleKind,
                 int64_t begin, int64_t end);
void log_weights_backward(const Mask*, LikelihoodKind, DType, const LogWeightGradParams&, ScaleKind,
                          double* scale_sum, int64_t begin, int64_t end);
void iwae(const Mask*, LikelihoodKind, DType, const IwaeParams&, ScaleKind, double* scale_sum,
          int64_t begin, int64_t end);

}  // namespace dvae::cpu
