// sample_latent, latent_log_ratio and their gradients.
#include "common.h"
#include "operators.h"

namespace dvae::glue {
namespace {

void check_posterior(const Tensor& mean, const Tensor& log_var) {
  check_shape(mean, "mean", {-1, -1, -1});
  check_shape(log_var, "log_var", {mean.sizes()[0], mean.sizes()[1], mean.sizes()[2]});
  check_dtype(log_var, "log_var", mean.scalar_type());
}

LatentParams latent_params(const Tensor& mean, const Tensor& log_var, int64_t k,
                           const NoiseParams& noise) {
  LatentParams p{};
  p.mean = mean.const_data_ptr();
  p.log_var = log_var.const_data_ptr();
  p.copies = mean.sizes()[0];
  p.examples = mean.sizes()[1];
  p.samples = k;
  p.size = mean.sizes()[2];
  p.noise = noise;
  return p;
}

// latent_log_ratio has no corruptions: its N rows are examples.
LatentParams ratio_params(const Tensor& z, const Tensor& mean, const Tensor& log_var) {
  LatentParams p{};
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
  }
}

}  // namespace

std::tuple<Tensor, Tensor> sample_latent_cpu(const Tensor& mean_in, const Tensor& log_var_in,
                                             int64_t k, const Tensor& seed, int64_t first_example,
                                             int64_t first_sample) {
  check_posterior(mean_in, log_var_in);
  STD_TORCH_CHECK(k >= 0, "k must be >= 0, got ", k);
  const DType dtype = dtype_of(mean_in, "mean");
  const Tensor mean = packed(mean_in), log_var = packed(log_var_in);
  LatentParams p = latent_params(mean, log_var, k, noise_params(seed, first_example, first_sample));
  Tensor z = empty(mean, {p.copies, p.examples, k, p.size}, mean.scalar_type());
  Tensor log_ratio = empty(mean, {p.copies, p.examples, k}, sum_type(mean));
  p.z = z.mutable_data_ptr();
  p.log_ratio = log_ratio.mutable_data_ptr();
  const auto kernel = cpu::kernels().sample_latent[static_cast<int>(dtype)];
  // A normal costs several times what a mask bit does, and a block of them is always drawn whole.
  for_rows(p.copies * p.examples * k, 4 * round_up_to_block(p.size),
           [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return {z, log_ratio};
}

std::tuple<Tensor, Tensor> sample_latent_backward_cpu(
    const std::optional<Tensor>& grad_z_in, const std::optional<Tensor>& grad_log_ratio_in,
    const Tensor& mean_in, const Tensor& log_var_in, int64_t k, const Tensor& seed,
    int64_t first_example, int64_t first_sample) {
  check_posterior(mean_in, log_var_in);
  const DType dtype = dtype_of(mean_in, "mean");
  const Tensor mean = packed(mean_in), log_var = packed(log_var_in);
  LatentParams p = latent_params(mean, log_var, k, noise_params(seed, first_example, first_sample));
  std::optional<Tensor> grad_z, grad_log_ratio;
  if (grad_z_in) {
    check_shape(*grad_z_in, "grad_z", {p.copies, p.examples, k, p.size});
    check_dtype(*grad_z_in, "grad_z", mean.scalar_type());
    grad_z = packed(*grad_z_in);
    p.grad_z = grad_z->const_data_ptr();
  }
  if (grad_log_ratio_in) {
    check_shape(*grad_log_ratio_in, "grad_log_ratio", {p.copies, p.examples, k});
    check_dtype(*grad_log_ratio_in, "grad_log_ratio", sum_type(mean));
    grad_log_ratio = packed(*grad_log_ratio_in);
    p.grad_log_ratio = grad_log_ratio->const_data_ptr();
  }
  Tensor grad_mean = new_like(mean), grad_log_var = new_like(mean);
  p.grad_mean = grad_mean.mutable_data_ptr();
  p.grad_log_var = grad_log_var.mutable_data_ptr();
  const auto kernel = cpu::kernels().sample_latent_backward[static_cast<int>(dtype)];
  for_rows(p.copies * p.examples, 4 * k * round_up_to_block(p.size),
           [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return {grad_mean, grad_log_var};
}

Tensor latent_log_ratio_cpu(const Tensor& z_in, const Tensor& mean_in, const Tensor& log_var_in) {
  check_ratio(z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  const Tensor z = packed(z_in), mean = packed(mean_in), log_var = packed(log_var_in);
  LatentParams p = ratio_params(z, mean, log_var);
  Tensor out = empty(z, {p.examples, p.samples}, sum_type(z));
  p.log_ratio = out.mutable_data_ptr();
  const auto kernel = cpu::kernels().latent_log_ratio[static_cast<int>(dtype)];
  for_rows(p.examples * p.samples, p.size,
           [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> latent_log_ratio_backward_cpu(const Tensor& grad_in,
                                                                 const Tensor& z_in,
                                                                 const Tensor& mean_in,
                                                                 const Tensor& log_var_in) {
  check_ratio(z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  check_shape(grad_in, "grad", {z_in.sizes()[0], z_in.sizes()[1]});
  check_dtype(grad_in, "grad", sum_type(z_in));
  const Tensor grad = packed(grad_in), z = packed(z_in);
  const Tensor mean = packed(mean_in), log_var = packed(log_var_in);
  LatentParams p = ratio_params(z, mean, log_var);
  Tensor grad_z = new_like(z), grad_mean = new_like(mean), grad_log_var = new_like(mean);
  p.grad_log_ratio = grad.const_data_ptr();
  p.grad_z_out = grad_z.mutable_data_ptr();
  p.grad_mean = grad_mean.mutable_data_ptr();
  p.grad_log_var = grad_log_var.mutable_data_ptr();
  const auto kernel = cpu::kernels().latent_log_ratio_backward[static_cast<int>(dtype)];
  for_rows(p.examples, p.samples * p.size,
           [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return {grad_z, grad_mean, grad_log_var};
}

}  // namespace dvae::glue
