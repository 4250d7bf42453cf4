// Rows of a zero-inflated negative binomial, with a mask or without (masked.h).
#pragma once

#include "masked.h"

namespace dvae::cpu {

// float32 and float64; p.seen and p.data are its own business. Its gradient where p.grad is not
// null: params must not be what it writes.
void zero_inflated(const Mask*, DType, const ZeroInflatedParams&, ScaleKind, double* scale_sum,
                   int64_t begin, int64_t end);

}  // namespace dvae::cpu
