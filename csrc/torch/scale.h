// The rule for a likelihood's scale: 1 or D elements shared by all rows, or (N, K, D) of them.
#pragma once

#include <optional>

#include "../core/likelihoods.h"
#include "tensor.h"

namespace dvae::glue {

inline ScaleKind scale_kind(const std::optional<Tensor>& scale, LikelihoodKind likelihood,
                            const Tensor& params, int64_t size) {
  STD_TORCH_CHECK(scale.has_value() == has_scale(likelihood), "scale must ",
                  has_scale(likelihood) ? "" : "not ", "be given for the likelihood ",
                  kLikelihoodNames[static_cast<int>(likelihood)]);
  if (!scale) return ScaleKind::kNone;
  dtype_of(*scale, "scale");
  check_device(*scale, "scale", params);
  if (scale->numel() != 1 && scale->dim() == 3) {
    check_dtype(*scale, "scale", params.scalar_type());
    return ScaleKind::kFull;
  }
  STD_TORCH_CHECK(scale->numel() == 1 || scale->numel() == size,
                  "scale must have 1, D or N·K·D elements, D = ", size, ", got shape ",
                  shape_of(*scale));
  return ScaleKind::kShared;
}

// Where a layer's output is never held, neither is a scale an element.
inline void check_not_full(ScaleKind kind, const std::optional<Tensor>& scale) {
  STD_TORCH_CHECK(kind != ScaleKind::kFull, "scale must have 1 or D elements, got shape ",
                  scale ? shape_of(*scale) : "");
}

}  // namespace dvae::glue
