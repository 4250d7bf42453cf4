// corrupt and its gradients.
#include "corruption.h"

namespace dvae::glue {

Tensor corrupt(const Backend& on, In x, Name kind, In rate, MaybeIn salt, In seed, int64_t copies,
               int64_t first_example, int64_t first_copy) {
  check_shape(x, "x", {-1, -1});
  STD_TORCH_CHECK(copies >= 0, "copies must be >= 0, got ", copies);
  const DType dtype = dtype_of(x, "x");
  Corruption c(on, corruption_of(kind), rate, salt, seed, x, copies, first_example, first_copy);
  const Tensor in = read(x, c.params.in);
  const Tensor out =
      written(empty(x, {copies, c.params.examples, c.params.size}, x.scalar_type()), c.params.out);
  on.corrupt(x, dtype, c.params);
  return out;
}

Tensor corrupt_backward(const Backend& on, In grad, Name kind, In rate, MaybeIn salt, In seed,
                        int64_t first_example, int64_t first_copy) {
  check_shape(grad, "grad", {-1, -1, -1});
  const DType dtype = dtype_of(grad, "grad");
  Corruption c(on, corruption_of(kind), rate, salt, seed, grad, grad.sizes()[0], first_example,
               first_copy);
  const Tensor in = read(grad, c.params.in);
  const Tensor out =
      written(empty(grad, {c.params.examples, c.params.size}, grad.scalar_type()), c.params.out);
  on.corrupt_backward(grad, dtype, c.params);
  return out;
}

Tensor corrupt_backward_std(const Backend& on, In grad, In std, In seed, int64_t first_example,
                            int64_t first_copy) {
  check_shape(grad, "grad", {-1, -1, -1});
  const DType dtype = dtype_of(grad, "grad");
  Corruption c(on, CorruptionKind::kAdditiveGaussian, std, std::nullopt, seed, grad,
               grad.sizes()[0], first_example, first_copy);
  const Tensor in = read(grad, c.params.in), out = new_like(std);
  on.corrupt_backward_std(grad, dtype, c.params, out);
  return out;
}

}  // namespace dvae::glue
