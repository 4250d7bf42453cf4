// sample_latent, latent_log_ratio and their gradients.
#include "../operators.h"

namespace dvae::glue {
namespace {

void check_posterior(const Backend& on, In mean, In log_var) {
  check_shape(mean, "mean", {-1, -1, -1});
  const auto sizes = mean.sizes();
  on.check(log_var, "log_var", {sizes[0], sizes[1], sizes[2]}, mean.scalar_type(), mean);
}

LatentParams latent_params(In mean, In log_var, int64_t copies, int64_t examples, int64_t samples) {
  LatentParams p{};
  p.mean = mean.const_data_ptr();
  p.log_var = log_var.const_data_ptr();
  p.copies = copies;
  p.examples = examples;
  p.samples = samples;
  p.size = mean.sizes()[mean.dim() - 1];
  return p;
}

void check_ratio(const Backend& on, In z, In mean, In log_var) {
  check_shape(z, "z", {-1, -1, -1});
  on.check(mean, "mean", {z.sizes()[0], z.sizes()[2]}, z.scalar_type(), z);
  on.check(log_var, "log_var", {z.sizes()[0], z.sizes()[2]}, z.scalar_type(), z);
}

// latent_log_ratio has no corruptions: its N rows are examples.
LatentParams ratio_params(In z, In mean, In log_var) {
  LatentParams p = latent_params(mean, log_var, 1, z.sizes()[0], z.sizes()[1]);
  // z is an input here; the field is not const because sample_latent writes it.
  p.z = const_cast<void*>(z.const_data_ptr());
  return p;
}

}  // namespace

Two sample_latent(const Backend& on, In mean_in, In log_var_in, int64_t k, In seed,
                  int64_t first_example, int64_t first_sample) {
  check_posterior(on, mean_in, log_var_in);
  STD_TORCH_CHECK(k >= 0, "k must be >= 0, got ", k);
  const DType dtype = dtype_of(mean_in, "mean");
  const Tensor mean = packed(mean_in), log_var = packed(log_var_in);
  LatentParams p = latent_params(mean, log_var, mean.sizes()[0], mean.sizes()[1], k);
  p.noise = on.noise(seed, first_example, first_sample, mean);
  Tensor z = empty(mean, {p.copies, p.examples, k, p.size}, mean.scalar_type());
  Tensor log_ratio = empty(mean, {p.copies, p.examples, k}, sum_type(mean));
  p.z = z.mutable_data_ptr();
  p.log_ratio = log_ratio.mutable_data_ptr();
  on.sample_latent(mean, dtype, p);
  return {z, log_ratio};
}

Two sample_latent_backward(const Backend& on, MaybeIn grad_z_in, MaybeIn grad_log_ratio_in,
                           In mean_in, In log_var_in, int64_t k, In seed, int64_t first_example,
                           int64_t first_sample) {
  check_posterior(on, mean_in, log_var_in);
  const DType dtype = dtype_of(mean_in, "mean");
  const Tensor mean = packed(mean_in), log_var = packed(log_var_in);
  LatentParams p = latent_params(mean, log_var, mean.sizes()[0], mean.sizes()[1], k);
  p.noise = on.noise(seed, first_example, first_sample, mean);
  const Maybe grad_z = grad_z_in ? packed(*grad_z_in) : Maybe();
  const Maybe grad_log_ratio = grad_log_ratio_in ? packed(*grad_log_ratio_in) : Maybe();
  if (grad_z) {
    on.check(*grad_z, "grad_z", {p.copies, p.examples, k, p.size}, mean.scalar_type(), mean);
    p.grad_z = grad_z->const_data_ptr();
  }
  if (grad_log_ratio) {
    on.check(*grad_log_ratio, "grad_log_ratio", {p.copies, p.examples, k}, sum_type(mean), mean);
    p.grad_log_ratio = grad_log_ratio->const_data_ptr();
  }
  Tensor grad_mean = new_like(mean), grad_log_var = new_like(mean);
  p.grad_mean = grad_mean.mutable_data_ptr();
  p.grad_log_var = grad_log_var.mutable_data_ptr();
  on.sample_latent_backward(mean, dtype, p);
  return {grad_mean, grad_log_var};
}

Tensor latent_log_ratio(const Backend& on, In z_in, In mean_in, In log_var_in) {
  check_ratio(on, z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  const Tensor z = packed(z_in), mean = packed(mean_in), log_var = packed(log_var_in);
  LatentParams p = ratio_params(z, mean, log_var);
  Tensor out = empty(z, {p.examples, p.samples}, sum_type(z));
  p.log_ratio = out.mutable_data_ptr();
  on.latent_log_ratio(z, dtype, p);
  return out;
}

Three latent_log_ratio_backward(const Backend& on, In grad_in, In z_in, In mean_in, In log_var_in) {
  check_ratio(on, z_in, mean_in, log_var_in);
  const DType dtype = dtype_of(z_in, "z");
  on.check(grad_in, "grad", {z_in.sizes()[0], z_in.sizes()[1]}, sum_type(z_in), z_in);
  const Tensor grad = packed(grad_in), z = packed(z_in);
  const Tensor mean = packed(mean_in), log_var = packed(log_var_in);
  LatentParams p = ratio_params(z, mean, log_var);
  Tensor grad_z = new_like(z), grad_mean = new_like(mean), grad_log_var = new_like(mean);
  p.grad_log_ratio = grad.const_data_ptr();
  p.grad_z_out = grad_z.mutable_data_ptr();
  p.grad_mean = grad_mean.mutable_data_ptr();
  p.grad_log_var = grad_log_var.mutable_data_ptr();
  on.latent_log_ratio_backward(z, dtype, p);
  return {grad_z, grad_mean, grad_log_var};
}

}  // namespace dvae::glue
