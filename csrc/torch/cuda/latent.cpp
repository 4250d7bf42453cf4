// sample_latent, latent_log_ratio and their gradients.
#include "common.h"
#include "operators.h"

namespace dvae::glue {
namespace {

void check_posterior(const Tensor& mean, const Tensor& log_var) {
  check_shape(mean, "mean", {-1, -1, -1});
  check_shape(log_var, "log_var", {mean.sizes()[0], mean.sizes()[1], mean.sizes()[2]});
  check_dtype(log_var, "log_var", mean.scalar_type());
  check_device(log_var, "log_var", mean);
}

cuda::Latent latent_params(const Tensor& mean, const Tensor& log_var, int64_t k, const Tensor& seed,
                           int64_t first_example, int64_t first_sample) {
  check_first(first_example, first_sample);
  cuda::Latent p{};
  p.mean = mean.const_data_ptr();
  p.log_var = log_var.const_data_ptr();
  p.copies = mean.sizes()[0];
  p.examples = mean.sizes()[1];
  p.samples = k;
  p.size = mean.sizes()[2];
  p.noise.first_example = static_cast<uint32_t>(first_example);
  p.noise.first_sample = static_cast<uint32_t>(first_sample);
  p.seed = seed_data(seed, mean);
  return p;
}

// latent_log_ratio has no corruptions: its N rows are examples.
cuda::Latent ratio_params(const Tensor& z, const Tensor& mean, const Tensor& log_var) {
  cuda::Latent p{};
  p.mean = mean.const_data_ptr();
  p.log_var = log_var.const_data_ptr();
  // z is an input here; the field is not const because sample_latent writes it.
  p.z = const_cast<void*>(z.const_data_ptr());
  p.copies = 1;
  p.examples = z.sizes()[0];
  p.samples = z.sizes()[1];
  p.size = z.sizes()[2];
  return p;
}

void check_ratio(const Tensor& z, const Tensor& mean, const Tensor& log_var) {
  check_shape(z, "z", {-1, -1, -1});
  for (const auto& [t, name] : {std::pair{&mean, "mean"}, std::pair{&log_var, "log_var"}}) {
    check_shape(*t, name, {z.sizes()[0], z.sizes()[2]});
    check_dtype(*t, name, z.scalar_type());
    check_device(*t, name, z);
  }
}

}  // namespace

std::tuple<Tensor, Tensor> sample_latent_cuda(const Tensor& mean_in, const Tensor& log_var_in,
                                              int64_t k, const Tensor& seed, int64_t first_example,
                                              int64_t first_sample) {
  check_posterior(mean_in, log_var_in);
  STD_TORCH_CHECK(k >= 0, "k must be >= 0, got ", k);
  const DType dtype = dtype_of(mean_in, "mean");
  const OnDevice device(mean_in);
  const Tensor mean = packed(mean_in), log_var = packed(log_var_in);
  cuda::Latent p = latent_params(mean, log_var, k, seed, first_example, first_sample);
  Tensor z = empty(mean, {p.copies, p.examples, k, p.size}, mean.scalar_type());
  Tensor log_ratio = empty(mean, {p.copies, p.examples, k}, sum_type(mean));
  p.z = z.mutable_data_ptr();
  p.log_ratio = log_ratio.mutable_data_ptr();
  check_launch(cuda::sample_latent(dtype, p, device.stream()), "sample_latent");
  return {z, log_ratio};
}

std::tuple<Tensor, Tensor> sample_latent_backward_cuda(
    const std::optional<Tensor>& grad_z_in, const std::optional<Tensor>& grad_log_ratio_in,
    const Tensor& mean_in, const Tensor& log_var_in, int64_t k, const Tensor& seed,
    int64_t first_example, int64_t first_sample) {
  check_posterior(mean_in, log_var_in);
  const DType dtype = dtype_of(mean_in, "mean");
  const OnDevice device(mean_in);
  const Tensor mean = packed(mean_in), log_var = packed(log_var_in);
  cuda::Latent p = latent_params(mean, log_var, k, seed, first_example, first_sample);
  std::optional<Tensor> grad_z, grad_log_ratio;
  if (grad_z_in) {
    check_shape(*grad_z_in, "grad_z", {p.copies, p.examples, k, p.size});
    check_dtype(*grad_z_in, "grad_z", mean.scalar_type());
    check_device(*grad_z_in, "grad_z", mean);
    grad_z = packed(*grad_z_in);
    p.grad_z = grad_z->const_data_ptr();
  }
  if (grad_log_ratio_in) {
    check_shape(*grad_log_ratio_in, "grad_log_ratio", {p.copies, p.examples, k});
    check_dtype(*grad_log_ratio_in, "grad_log_ratio", sum_type(mean));
    check_device(*grad_log_ratio_in, "grad_log_ratio", mean);
    grad_log_ratio = packed(*grad_log_ratio_in);
    p.grad_log_ratio = grad_log_ratio->const_data_ptr();
  }
  Tensor grad_mean = new_like(mean), grad_log_var = new_like(mean);
  p.grad_mean = grad_mean.mutable_data_ptr();
  p.grad_log_var = grad_log_var.mutable_data_ptr();
  check_launch(cuda::sample_latent_backward(dtype, p, device.stream()), "sample_latent_backward");
  return {grad_mean, grad_log_var};
}

Tensor latent_log_ratio_cuda(const Tensor& z_in, const Tensor& mean_in, const Tensor& log_var_in) {
  check_ratio(z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  const OnDevice device(z_in);
  const Tensor z = packed(z_in), mean = packed(mean_in), log_var = packed(log_var_in);
  cuda::Latent p = ratio_params(z, mean, log_var);
  Tensor out = empty(z, {p.examples, p.samples}, sum_type(z));
  p.log_ratio = out.mutable_data_ptr();
  check_launch(cuda::latent_log_ratio(dtype, p, device.stream()), "latent_log_ratio");
  return out;
}

std::tuple<Tensor, Tensor, Tensor> latent_log_ratio_backward_cuda(const Tensor& grad_in,
                                                                  const Tensor& z_in,
                                                                  const Tensor& mean_in,
                                                                  const Tensor& log_var_in) {
  check_ratio(z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  check_shape(grad_in, "grad", {z_in.sizes()[0], z_in.sizes()[1]});
  check_dtype(grad_in, "grad", sum_type(z_in));
  check_device(grad_in, "grad", z_in);
  const OnDevice device(z_in);
  const Tensor grad = packed(grad_in), z = packed(z_in);
  const Tensor mean = packed(mean_in), log_var = packed(log_var_in);
  cuda::Latent p = ratio_params(z, mean, log_var);
  Tensor grad_z = new_like(z), grad_mean = new_like(mean), grad_log_var = new_like(mean);
  p.grad_log_ratio = grad.const_data_ptr();
  p.grad_z_out = grad_z.mutable_data_ptr();
  p.grad_mean = grad_mean.mutable_data_ptr();
  p.grad_log_var = grad_log_var.mutable_data_ptr();
  check_launch(cuda::latent_log_ratio_backward(dtype, p, device.stream()),
               "latent_log_ratio_backward");
  return {grad_z, grad_mean, grad_log_var};
}

}  // namespace dvae::glue
