// corrupt and its gradients.
#include "corruption.h"

namespace dvae::glue {

Tensor corrupt(const Backend& on, In x, Name kind, In rate, MaybeIn salt, In seed, int64_t copies,
               int64_t first_example, int64_t first_copy) {
  check_shape(x, "x", {-1, -1});
  STD_TORCH_CHECK(copies >= 0, "copies must be >= 0, got ", copies);
  const DType dtype = dtype_of(x, "x");
  const Tensor in = packed(x);
  Corruption c(on, corruption_of(kind), rate, salt, seed, x, copies, first_example, first_copy);
  Tensor out = empty(x, {copies, c.params.examples, c.params.size}, x.scalar_type());
  c.params.in = in.const_data_ptr();
  c.params.out = out.mutable_data_ptr();
  on.corrupt(x, dtype, c.params);
  return out;
}

Tensor corrupt_backward(const Backend& on, In grad, Name kind, In rate, MaybeIn salt, In seed,
                        int64_t first_example, int64_t first_copy) {
  check_shape(grad, "grad", {-1, -1, -1});
  const DType dtype = dtype_of(grad, "grad");
  const Tensor in = packed(grad);
  Corruption c(on, corruption_of(kind), rate, salt, seed, grad, grad.sizes()[0], first_example,
               first_copy);
  Tensor out = empty(grad, {c.params.examples, c.params.size}, grad.scalar_type());
  c.params.in = in.const_data_ptr();
  c.params.out = out.mutable_data_ptr();
  on.corrupt_backward(grad, dtype, c.params);
  return out;
}

Tensor corrupt_backward_std(const Backend& on, In grad, In std, In seed, int64_t first_example,
                            int64_t first_copy) {
  check_shape(grad, "grad", {-1, -1, -1});
  const DType dtype = dtype_of(grad, "grad");
  const Tensor in = packed(grad);
  Corruption c(on, CorruptionKind::kAdditiveGaussian, std, std::nullopt, seed, grad,
               grad.sizes()[0], first_example, first_copy);
  Tensor out = new_like(std);
  c.params.in = in.const_data_ptr();
  on.corrupt_backward_std(grad, dtype, c.params, out);
  return out;
}

}  // namespace dvae::glue
