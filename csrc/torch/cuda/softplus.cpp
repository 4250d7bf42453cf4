// softplus and its gradient.
#include "common.h"
#include "operators.h"

namespace dvae::glue {

Tensor softplus_cuda(const Tensor& x) {
  const DType dtype = dtype_of(x, "x");
  const OnDevice device(x);
  const Tensor in = packed(x);
  Tensor out = new_like(in);
  check_launch(cuda::softplus(dtype, in.const_data_ptr(), out.mutable_data_ptr(), in.numel(),
                              device.stream()),
               "softplus");
  return out;
}

Tensor softplus_backward_cuda(const Tensor& grad_in, const Tensor& out_in) {
  const DType dtype = dtype_of(out_in, "out");
  check_dtype(grad_in, "grad", out_in.scalar_type());
  check_device(grad_in, "grad", out_in);
  STD_TORCH_CHECK(grad_in.numel() == out_in.numel(), "grad must have the shape of out, ",
                  shape_of(out_in), ", got ", shape_of(grad_in));
  const OnDevice device(out_in);
  const Tensor grad = packed(grad_in), out = packed(out_in);
  Tensor result = new_like(out);
  check_launch(cuda::softplus_backward(dtype, grad.const_data_ptr(), out.const_data_ptr(),
                                       result.mutable_data_ptr(), out.numel(), device.stream()),
               "softplus_backward");
  return result;
}

}  // namespace dvae::glue
