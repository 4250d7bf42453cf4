// The operators on the CPU.
#pragma once

#include <vector>

#define DVAE_OP(name) name##_cpu
#include "../operators.inl"

namespace dvae::glue {

// Of the CPU alone: elsewhere the layers run one after the other.
Tensor mlp_log_weights_cpu(const Tensor& z, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, const std::string& activation,
                           const std::optional<Tensor>& scale, const Tensor& x,
                           const Tensor& log_ratio, const std::string& likelihood);

}  // namespace dvae::glue
