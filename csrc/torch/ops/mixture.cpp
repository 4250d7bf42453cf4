// mixture_log_ratio and its gradient.
#include "../operators.h"

namespace dvae::glue {
namespace {

struct Mixture {
  DType dtype;
  MixtureParams p{};
  Tensor z, mean, log_var;

  Mixture(const Backend& on, In z_in, In mean_in, In log_var_in)
      : dtype(dtype_of(z_in, "z")),
        z(read(z_in, p.z)),
        mean(read(mean_in, p.mean)),
        log_var(read(log_var_in, p.log_var)) {
    check_shape(z_in, "z", {-1, -1, -1});
    const auto sizes = z_in.sizes();
    on.check(mean_in, "mean", {-1, sizes[0], sizes[2]}, z_in.scalar_type(), z_in);
    p.components = mean_in.sizes()[0];
    STD_TORCH_CHECK(p.components >= 1, "mean must hold M >= 1 components, got ", shape_of(mean_in));
    on.check(log_var_in, "log_var", {p.components, sizes[0], sizes[2]}, z_in.scalar_type(), z_in);
    p.examples = sizes[0];
    p.samples = sizes[1];
    p.size = sizes[2];
  }
};

}  // namespace

Two mixture_log_ratio(const Backend& on, In z, In mean, In log_var) {
  Mixture q(on, z, mean, log_var);
  const int64_t shape[] = {q.p.examples, q.p.samples, q.p.components};
  const Tensor log_ratio = written(empty(z, shape, 2, sum_type(z)), q.p.log_ratio);
  const Tensor weights = written(empty(z, shape, 3, sum_type(z)), q.p.weights);
  on.mixture_log_ratio(z, q.dtype, q.p);
  return {log_ratio, weights};
}

Three mixture_log_ratio_backward(const Backend& on, In grad_in, In weights_in, In z, In mean,
                                 In log_var) {
  Mixture q(on, z, mean, log_var);
  on.check(grad_in, "grad", {q.p.examples, q.p.samples}, sum_type(z), z);
  on.check(weights_in, "weights", {q.p.examples, q.p.samples, q.p.components}, sum_type(z), z);
  const Tensor grad = read(grad_in, q.p.grad), weights = read(weights_in, q.p.weights);
  const Tensor grad_z = written(new_like(z), q.p.grad_z);
  const Tensor grad_mean = written(new_like(mean), q.p.grad_mean);
  const Tensor grad_log_var = written(new_like(mean), q.p.grad_log_var);
  on.mixture_log_ratio_backward(z, q.dtype, q.p);
  return {grad_z, grad_mean, grad_log_var};
}

}  // namespace dvae::glue
