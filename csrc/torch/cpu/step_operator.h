// An operator of the CPU alone (step.cpp).
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "../tensor.h"

namespace dvae::glue {

// x (B, D) → the loss and the gradients of all layers, in the order of the layers; see
// reference.mlp_loss.
std::tuple<Tensor, std::vector<Tensor>> mlp_loss(
    In x, Name corruption, In rate, MaybeIn salt, In seed, int64_t copies, int64_t samples,
    int64_t first_example, const std::vector<Tensor>& encoder, const std::vector<Tensor>& decoder,
    Name activation, Name likelihood, bool outside, bool analytic, bool drops_score, bool doubly,
    double kl_weight, bool bfloat16);

}  // namespace dvae::glue
