// mixture_log_ratio and its gradient.
#include "../mixture.h"
#include "common.h"
#include "operators.h"

namespace dvae::glue {

std::tuple<Tensor, Tensor> mixture_log_ratio_cuda(const Tensor& z, const Tensor& mean,
                                                  const Tensor& log_var) {
  return mixture_log_ratio(
      z, mean, log_var, [](DType dtype, const MixtureParams& p, const Tensor& on) {
        const OnDevice device(on);
        check_launch(cuda::mixture_log_ratio(dtype, p, device.stream()), "mixture_log_ratio");
      });
}

std::tuple<Tensor, Tensor, Tensor> mixture_log_ratio_backward_cuda(const Tensor& grad,
                                                                   const Tensor& weights,
                                                                   const Tensor& z,
                                                                   const Tensor& mean,
                                                                   const Tensor& log_var) {
  return mixture_log_ratio_backward(
      grad, weights, z, mean, log_var, [](DType dtype, const MixtureParams& p, const Tensor& on) {
        const OnDevice device(on);
        check_launch(cuda::mixture_log_ratio_backward(dtype, p, device.stream()),
                     "mixture_log_ratio_backward");
      });
}

}  // namespace dvae::glue
