// The fused loss over all rows, shared out among threads by example, or by sample.
#pragma once

#include <vector>

#include "masked.h"
#include "rows.h"

namespace dvae::cpu {

// scale_sums: where the gradient of a scale that all rows share goes, per dimension.
void iwae(const Mask*, LikelihoodKind, DType, const IwaeParams&, ScaleKind, int64_t threads,
          const ForRows&, std::vector<double>& scale_sums);

}  // namespace dvae::cpu
