// softplus and its gradient.
#include "../operators.h"

namespace dvae::glue {

Tensor softplus(const Backend& on, In x) {
  const DType dtype = dtype_of(x, "x");
  const Tensor in = packed(x);
  Tensor out = new_like(in);
  on.softplus(x, dtype, in.const_data_ptr(), out.mutable_data_ptr(), in.numel());
  return out;
}

Tensor softplus_backward(const Backend& on, In grad_in, In out_in) {
  const DType dtype = dtype_of(out_in, "out");
  check_dtype(grad_in, "grad", out_in.scalar_type());
  on.check_device(grad_in, "grad", out_in);
  STD_TORCH_CHECK(grad_in.numel() == out_in.numel(), "grad must have the shape of out, ",
                  shape_of(out_in), ", got ", shape_of(grad_in));
  const Tensor grad = packed(grad_in), out = packed(out_in);
  Tensor result = new_like(out);
  on.softplus_backward(out, dtype, grad.const_data_ptr(), out.const_data_ptr(),
                       result.mutable_data_ptr(), out.numel());
  return result;
}

}  // namespace dvae::glue
