// softplus and its gradient.
#include "common.h"
#include "operators.h"

namespace dvae::glue {

Tensor softplus_cpu(const Tensor& x) {
  const DType dtype = dtype_of(x, "x");
  const Tensor in = packed(x);
  Tensor out = new_like(in);
  const void* from = in.const_data_ptr();
  void* to = out.mutable_data_ptr();
  const auto kernel = cpu::kernels().softplus[static_cast<int>(dtype)];
  for_rows(x.numel(), 1, [&](int64_t begin, int64_t end) { kernel(from, to, begin, end); });
  return out;
}

Tensor softplus_backward_cpu(const Tensor& grad_in, const Tensor& out_in) {
  const DType dtype = dtype_of(out_in, "out");
  check_dtype(grad_in, "grad", out_in.scalar_type());
  STD_TORCH_CHECK(grad_in.numel() == out_in.numel(), "grad must have the shape of out, ",
                  shape_of(out_in), ", got ", shape_of(grad_in));
  const Tensor grad = packed(grad_in), out = packed(out_in);
  Tensor result = new_like(out);
  const void* upstream = grad.const_data_ptr();
  const void* value = out.const_data_ptr();
  void* to = result.mutable_data_ptr();
  const auto kernel = cpu::kernels().softplus_backward[static_cast<int>(dtype)];
  for_rows(out.numel(), 1,
           [&](int64_t begin, int64_t end) { kernel(upstream, value, to, begin, end); });
  return result;
}

}  // namespace dvae::glue
