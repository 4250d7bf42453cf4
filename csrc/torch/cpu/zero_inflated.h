// Operators of the CPU alone (zero_inflated.cpp); see reference.zero_inflated.
#pragma once

#include "../operators.h"

namespace dvae::glue {

Tensor zero_inflated(In mean, In scale, In logits, In x, In log_ratio, MaybeIn mask);
Three zero_inflated_backward(In grad, In mean, In scale, In logits, In x, MaybeIn mask);

}  // namespace dvae::glue
