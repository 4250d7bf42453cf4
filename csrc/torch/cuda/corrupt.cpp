// corrupt and its gradients.
#include "common.h"
#include "operators.h"

namespace dvae::glue {
namespace {

// Everything of cuda::Corruption but in and out; keeps what the pointers point to.
struct CorruptionOnDevice {
  cuda::Corruption params{};
  Tensor rate, salt;

  CorruptionOnDevice(const std::string& kind, const Tensor& rate_in,
                     const std::optional<Tensor>& salt_in, const Tensor& seed, const Tensor& like,
                     int64_t first_example, int64_t first_copy)
      : rate(packed(rate_in)), salt(salt_in ? packed(*salt_in) : rate) {
    params.kind = corruption_kind(kind);
    params.size = like.sizes()[like.dim() - 1];
    check_first(first_example, first_copy);
    params.first_example = static_cast<uint32_t>(first_example);
    params.first_copy = static_cast<uint32_t>(first_copy);
    params.seed = seed_data(seed, like);
    // Also where they are not read: they may be what brought tensors of the CPU here.
    check_device(rate, "rate", like);
    check_device(salt, "salt", like);
    if (params.kind == CorruptionKind::kIdentity) return;
    check_parameter(rate, "rate");
    params.rate_step = rate.numel() == 1 ? 0 : 1;
    if (params.kind == CorruptionKind::kGaussian) {
      check_dtype(rate, "rate", sum_type(like));
      params.std = rate.const_data_ptr();
      return;
    }
    check_dtype(rate, "rate", ScalarType::Float);
    params.rate = static_cast<const float*>(rate.const_data_ptr());
    if (!salt_in) return;
    check_parameter(salt, "salt");
    check_dtype(salt, "salt", ScalarType::Float);
    params.salt = static_cast<const float*>(salt.const_data_ptr());
    params.salt_step = salt.numel() == 1 ? 0 : 1;
  }

 private:
  void check_parameter(const Tensor& t, const char* name) const {
    STD_TORCH_CHECK(t.numel() == 1 || t.numel() == params.size, name,
                    " must have 1 element or one per data dimension (", params.size,
                    "), got shape ", shape_of(t));
  }
};

}  // namespace

Tensor corrupt_cuda(const Tensor& x, const std::string& kind, const Tensor& rate,
                    const std::optional<Tensor>& salt, const Tensor& seed, int64_t copies,
                    int64_t first_example, int64_t first_copy) {
  check_shape(x, "x", {-1, -1});
  STD_TORCH_CHECK(copies >= 0, "copies must be >= 0, got ", copies);
  const DType dtype = dtype_of(x, "x");
  const OnDevice device(x);
  const Tensor in = packed(x);
  CorruptionOnDevice c(kind, rate, salt, seed, x, first_example, first_copy);
  c.params.copies = copies;
  c.params.examples = x.sizes()[0];
  Tensor out = empty(x, {copies, c.params.examples, c.params.size}, x.scalar_type());
  c.params.in = in.const_data_ptr();
  c.params.out = out.mutable_data_ptr();
  check_launch(cuda::corrupt(dtype, c.params, device.stream()), "corrupt");
  return out;
}

Tensor corrupt_backward_cuda(const Tensor& grad, const std::string& kind, const Tensor& rate,
                             const std::optional<Tensor>& salt, const Tensor& seed,
                             int64_t first_example, int64_t first_copy) {
  check_shape(grad, "grad", {-1, -1, -1});
  const DType dtype = dtype_of(grad, "grad");
  const OnDevice device(grad);
  const Tensor in = packed(grad);
  CorruptionOnDevice c(kind, rate, salt, seed, grad, first_example, first_copy);
  c.params.copies = grad.sizes()[0];
  c.params.examples = grad.sizes()[1];
  Tensor out = empty(grad, {c.params.examples, c.params.size}, grad.scalar_type());
  c.params.in = in.const_data_ptr();
  c.params.out = out.mutable_data_ptr();
  check_launch(cuda::corrupt_backward(dtype, c.params, device.stream()), "corrupt_backward");
  return out;
}

Tensor corrupt_backward_std_cuda(const Tensor& grad, const Tensor& std, const Tensor& seed,
                                 int64_t first_example, int64_t first_copy) {
  check_shape(grad, "grad", {-1, -1, -1});
  const DType dtype = dtype_of(grad, "grad");
  const OnDevice device(grad);
  const Tensor in = packed(grad);
  CorruptionOnDevice c("gaussian", std, std::nullopt, seed, grad, first_example, first_copy);
  c.params.copies = grad.sizes()[0];
  c.params.examples = grad.sizes()[1];
  c.params.in = in.const_data_ptr();
  const int64_t parts = cuda::sum_parts(c.params.copies * c.params.examples, c.params.size);
  const Tensor sums = empty(grad, {parts, c.params.size}, ScalarType::Double);
  auto* data = static_cast<double*>(sums.mutable_data_ptr());
  check_launch(cuda::corrupt_backward_std(dtype, c.params, data, parts, device.stream()),
               "corrupt_backward_std");
  Tensor out = new_like(std);
  check_launch(cuda::finish_sums(dtype_of(std, "std"), data, parts, c.params.size,
                                 out.mutable_data_ptr(), std.numel(), device.stream()),
               "corrupt_backward_std");
  return out;
}

}  // namespace dvae::glue
