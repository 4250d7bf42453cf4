// mixture_log_ratio and its gradient, but for the launch: launch(dtype, params, z) on any device.
#pragma once

#include <tuple>
#include <utility>

#include "tensor.h"

namespace dvae::glue {

inline void check_mixture(const Tensor& z, const Tensor& mean, const Tensor& log_var) {
  check_shape(z, "z", {-1, -1, -1});
  for (const auto& [t, name] : {std::pair{&mean, "mean"}, std::pair{&log_var, "log_var"}}) {
    check_shape(*t, name, {-1, z.sizes()[0], z.sizes()[2]});
    check_dtype(*t, name, z.scalar_type());
    check_device(*t, name, z);
  }
  STD_TORCH_CHECK(mean.sizes()[0] >= 1, "mean must hold M >= 1 components, got ", shape_of(mean));
  check_shape(log_var, "log_var", {mean.sizes()[0], z.sizes()[0], z.sizes()[2]});
}

inline MixtureParams mixture_params(const Tensor& z, const Tensor& mean, const Tensor& log_var) {
  MixtureParams p{};
  p.z = z.const_data_ptr();
  p.mean = mean.const_data_ptr();
  p.log_var = log_var.const_data_ptr();
  p.components = mean.sizes()[0];
  p.examples = z.sizes()[0];
  p.samples = z.sizes()[1];
  p.size = z.sizes()[2];
  return p;
}

template <class Launch>
std::tuple<Tensor, Tensor> mixture_log_ratio(const Tensor& z_in, const Tensor& mean_in,
                                             const Tensor& log_var_in, const Launch& launch) {
  check_mixture(z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  const Tensor z = packed(z_in), mean = packed(mean_in), log_var = packed(log_var_in);
  MixtureParams p = mixture_params(z, mean, log_var);
  Tensor log_ratio = empty(z, {p.examples, p.samples}, sum_type(z));
  Tensor weights = empty(z, {p.examples, p.samples, p.components}, sum_type(z));
  p.log_ratio = log_ratio.mutable_data_ptr();
  p.weights = weights.mutable_data_ptr();
  launch(dtype, p, z);
  return {log_ratio, weights};
}

template <class Launch>
std::tuple<Tensor, Tensor, Tensor> mixture_log_ratio_backward(
    const Tensor& grad_in, const Tensor& weights_in, const Tensor& z_in, const Tensor& mean_in,
    const Tensor& log_var_in, const Launch& launch) {
  check_mixture(z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  check_shape(grad_in, "grad", {z_in.sizes()[0], z_in.sizes()[1]});
  check_shape(weights_in, "weights", {z_in.sizes()[0], z_in.sizes()[1], mean_in.sizes()[0]});
  for (const auto& [t, name] : {std::pair{&grad_in, "grad"}, std::pair{&weights_in, "weights"}}) {
    check_dtype(*t, name, sum_type(z_in));
    check_device(*t, name, z_in);
  }
  const Tensor grad = packed(grad_in), weights = packed(weights_in);
  const Tensor z = packed(z_in), mean = packed(mean_in), log_var = packed(log_var_in);
  MixtureParams p = mixture_params(z, mean, log_var);
  Tensor grad_z = new_like(z), grad_mean = new_like(mean), grad_log_var = new_like(mean);
  p.grad = grad.const_data_ptr();
  // weights is an input here; the field is not const because the forward writes it.
  p.weights = const_cast<void*>(weights.const_data_ptr());
  p.grad_z = grad_z.mutable_data_ptr();
  p.grad_mean = grad_mean.mutable_data_ptr();
  p.grad_log_var = grad_log_var.mutable_data_ptr();
  launch(dtype, p, z);
  return {grad_z, grad_mean, grad_log_var};
}

}  // namespace dvae::glue
