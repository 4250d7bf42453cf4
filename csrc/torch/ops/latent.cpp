// sample_latent, latent_log_ratio and their gradients.
#include "../operators.h"

namespace dvae::glue {
namespace {

struct Posterior {
  DType dtype;
  LatentParams p{};
  Tensor mean, log_var;
  Maybe z;

  // mean and log_var (M, B, Z), to draw k samples from.
  Posterior(const Backend& on, In mean_in, In log_var_in, int64_t k, In seed, int64_t first_example,
            int64_t first_sample)
      : dtype(dtype_of(mean_in, "mean")),
        mean(read(mean_in, p.mean)),
        log_var(read(log_var_in, p.log_var)) {
    check_shape(mean_in, "mean", {-1, -1, -1});
    STD_TORCH_CHECK(k >= 0, "k must be >= 0, got ", k);
    const auto sizes = mean_in.sizes();
    on.check(log_var_in, "log_var", {sizes[0], sizes[1], sizes[2]}, mean_in.scalar_type(), mean_in);
    p.noise = on.noise(seed, first_example, first_sample, mean_in);
    take(sizes[0], sizes[1], k);
  }
  // mean and log_var (N, Z) with z (N, K, Z): without corruptions the rows are examples.
  Posterior(const Backend& on, In z_in, In mean_in, In log_var_in)
      : dtype(dtype_of(z_in, "z")),
        mean(read(mean_in, p.mean)),
        log_var(read(log_var_in, p.log_var)) {
    check_shape(z_in, "z", {-1, -1, -1});
    const auto sizes = z_in.sizes();
    on.check(mean_in, "mean", {sizes[0], sizes[2]}, z_in.scalar_type(), z_in);
    on.check(log_var_in, "log_var", {sizes[0], sizes[2]}, z_in.scalar_type(), z_in);
    z = read(z_in, p.z);
    take(1, sizes[0], sizes[1]);
  }

 private:
  void take(int64_t copies, int64_t examples, int64_t samples) {
    p.copies = copies;
    p.examples = examples;
    p.samples = samples;
    p.size = mean.sizes()[mean.dim() - 1];
  }
};

}  // namespace

Two sample_latent(const Backend& on, In mean, In log_var, int64_t k, In seed, int64_t first_example,
                  int64_t first_sample) {
  Posterior q(on, mean, log_var, k, seed, first_example, first_sample);
  const int64_t shape[] = {q.p.copies, q.p.examples, k, q.p.size};
  const Tensor z = written(empty(mean, shape, 4, mean.scalar_type()), q.p.z);
  const Tensor log_ratio = written(empty(mean, shape, 3, sum_type(mean)), q.p.log_ratio);
  on.sample_latent(mean, q.dtype, q.p);
  return {z, log_ratio};
}

Two sample_latent_backward(const Backend& on, MaybeIn grad_z, MaybeIn grad_log_ratio, In mean,
                           In log_var, int64_t k, In seed, int64_t first_example,
                           int64_t first_sample) {
  Posterior q(on, mean, log_var, k, seed, first_example, first_sample);
  Maybe of_z, of_ratio;
  if (grad_z) {
    on.check(*grad_z, "grad_z", {q.p.copies, q.p.examples, k, q.p.size}, mean.scalar_type(), mean);
    of_z = read(*grad_z, q.p.grad_z);
  }
  if (grad_log_ratio) {
    on.check(*grad_log_ratio, "grad_log_ratio", {q.p.copies, q.p.examples, k}, sum_type(mean),
             mean);
    of_ratio = read(*grad_log_ratio, q.p.grad_log_ratio);
  }
  const Tensor grad_mean = written(new_like(mean), q.p.grad_mean);
  const Tensor grad_log_var = written(new_like(mean), q.p.grad_log_var);
  on.sample_latent_backward(mean, q.dtype, q.p);
  return {grad_mean, grad_log_var};
}

Tensor latent_log_ratio(const Backend& on, In z, In mean, In log_var) {
  Posterior q(on, z, mean, log_var);
  const Tensor out = written(empty(z, {q.p.examples, q.p.samples}, sum_type(z)), q.p.log_ratio);
  on.latent_log_ratio(z, q.dtype, q.p);
  return out;
}

Three latent_log_ratio_backward(const Backend& on, In grad_in, In z, In mean, In log_var) {
  Posterior q(on, z, mean, log_var);
  on.check(grad_in, "grad", {q.p.examples, q.p.samples}, sum_type(z), z);
  const Tensor grad = read(grad_in, q.p.grad_log_ratio);
  const Tensor grad_z = written(new_like(z), q.p.grad_z_out);
  const Tensor grad_mean = written(new_like(mean), q.p.grad_mean);
  const Tensor grad_log_var = written(new_like(mean), q.p.grad_log_var);
  on.latent_log_ratio_backward(z, q.dtype, q.p);
  return {grad_z, grad_mean, grad_log_var};
}

}  // namespace dvae::glue
