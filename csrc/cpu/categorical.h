// Rows of variables of several classes, one-hot, with a mask or without (masked.h).
#pragma once

#include "masked.h"

namespace dvae::cpu {

// float32 and float64; p.seen and p.data are its own business. Its gradient where p.grad is not
// null.
void categorical(const Mask*, DType, const CategoricalParams&, int64_t begin, int64_t end);

}  // namespace dvae::cpu
