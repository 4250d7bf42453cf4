// log-weights of a decoder of dense layers, of float32 or float64.
#pragma once

#include <optional>
#include <vector>

#include "../../core/params.h"
#include "../tensor.h"

namespace dvae::glue {

// in (N, K, I), weights[i] (O_i, O_(i − 1)), biases[i] (O_i) or null, activation after every layer
// but the last, whose output are the likelihood's params → (N, K).
Tensor decoder_log_weights(const Tensor& in, const std::vector<Tensor>& weights,
                           const std::vector<const Tensor*>& biases, Activation activation,
                           const std::optional<Tensor>& scale, const Tensor& x,
                           const Tensor& log_ratio, LikelihoodKind likelihood);

}  // namespace dvae::glue
