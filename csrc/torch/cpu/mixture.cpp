// mixture_log_ratio and its gradient.
#include "../mixture.h"
#include "common.h"
#include "operators.h"

namespace dvae::glue {

std::tuple<Tensor, Tensor> mixture_log_ratio_cpu(const Tensor& z, const Tensor& mean,
                                                 const Tensor& log_var) {
  return mixture_log_ratio(
      z, mean, log_var, [](DType dtype, const MixtureParams& p, const Tensor&) {
        const auto kernel = cpu::kernels().mixture_log_ratio[static_cast<int>(dtype)];
        // Few dimensions take as long as a block of them.
        for_rows(p.examples * p.samples, p.components * round_up_to_block(p.size),
                 [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
      });
}

std::tuple<Tensor, Tensor, Tensor> mixture_log_ratio_backward_cpu(const Tensor& grad,
                                                                  const Tensor& weights,
                                                                  const Tensor& z,
                                                                  const Tensor& mean,
                                                                  const Tensor& log_var) {
  return mixture_log_ratio_backward(
      grad, weights, z, mean, log_var, [](DType dtype, const MixtureParams& p, const Tensor&) {
        const auto kernel = cpu::kernels().mixture_log_ratio_backward[static_cast<int>(dtype)];
        for_rows(p.examples, p.samples * p.components * round_up_to_block(p.size),
                 [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
      });
}

}  // namespace dvae::glue
