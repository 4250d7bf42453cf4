// mixture_log_ratio and its gradient.
#include "../operators.h"

namespace dvae::glue {
namespace {

void check_mixture(const Backend& on, In z, In mean, In log_var) {
  check_shape(z, "z", {-1, -1, -1});
  const int64_t examples = z.sizes()[0], size = z.sizes()[2];
  on.check(mean, "mean", {-1, examples, size}, z.scalar_type(), z);
  STD_TORCH_CHECK(mean.sizes()[0] >= 1, "mean must hold M >= 1 components, got ", shape_of(mean));
  on.check(log_var, "log_var", {mean.sizes()[0], examples, size}, z.scalar_type(), z);
}

MixtureParams mixture_params(In z, In mean, In log_var) {
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

}  // namespace

Two mixture_log_ratio(const Backend& on, In z_in, In mean_in, In log_var_in) {
  check_mixture(on, z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  const Tensor z = packed(z_in), mean = packed(mean_in), log_var = packed(log_var_in);
  MixtureParams p = mixture_params(z, mean, log_var);
  Tensor log_ratio = empty(z, {p.examples, p.samples}, sum_type(z));
  Tensor weights = empty(z, {p.examples, p.samples, p.components}, sum_type(z));
  p.log_ratio = log_ratio.mutable_data_ptr();
  p.weights = weights.mutable_data_ptr();
  on.mixture_log_ratio(z, dtype, p);
  return {log_ratio, weights};
}

Three mixture_log_ratio_backward(const Backend& on, In grad_in, In weights_in, In z_in, In mean_in,
                                 In log_var_in) {
  check_mixture(on, z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  const int64_t examples = z_in.sizes()[0], samples = z_in.sizes()[1];
  on.check(grad_in, "grad", {examples, samples}, sum_type(z_in), z_in);
  on.check(weights_in, "weights", {examples, samples, mean_in.sizes()[0]}, sum_type(z_in), z_in);
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
  on.mixture_log_ratio_backward(z, dtype, p);
  return {grad_z, grad_mean, grad_log_var};
}

}  // namespace dvae::glue
