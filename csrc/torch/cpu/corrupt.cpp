// corrupt and its gradients.
#include "common.h"
#include "operators.h"

namespace dvae::glue {
namespace {

// Everything of CorruptParams but in and out; keeps what the pointers point to.
struct Corruption {
  CorruptParams params{};
  BlockTable<int32_t> hit, one;
  BlockTable<float> std32;
  BlockTable<double> std64;
  Tensor rate, salt;

  Corruption(const std::string& kind, const Tensor& rate_in, const std::optional<Tensor>& salt_in,
             const Tensor& like, int64_t copies, int64_t examples, int64_t size,
             const NoiseParams& noise)
      : rate(packed(rate_in)), salt(salt_in ? packed(*salt_in) : rate) {
    params.kind = corruption_kind(kind);
    params.copies = copies;
    params.examples = examples;
    params.size = size;
    params.noise = noise;
    if (params.kind == CorruptionKind::kIdentity) return;
    check_count(rate, "rate", size);
    check_count(salt, "salt", size);
    const bool one_rate = rate.numel() == 1;
    if (params.kind == CorruptionKind::kGaussian) {
      check_dtype(rate, "rate", sum_type(like));
      if (sum_type(like) == ScalarType::Double) {
        const double* v = static_cast<const double*>(rate.const_data_ptr());
        std64.fill(one_rate, size, [v](int64_t i) { return v[i]; });
        params.std = std64.data;
        params.table_stride = std64.stride;
      } else {
        const float* v = float_data(rate, "rate");
        std32.fill(one_rate, size, [v](int64_t i) { return v[i]; });
        params.std = std32.data;
        params.table_stride = std32.stride;
      }
      return;
    }
    const float* r = float_data(rate, "rate");
    const float* s = salt_in ? float_data(salt, "salt") : nullptr;
    const bool one_salt = salt.numel() == 1;
    const bool shared = one_rate && (s == nullptr || one_salt);
    const auto rate_at = [&](int64_t i) { return r[one_rate ? 0 : i]; };
    hit.fill(shared, size, [&](int64_t i) { return threshold(rate_at(i)); });
    one.fill(shared, size, [&](int64_t i) {
      return s == nullptr ? 0 : threshold(rate_at(i) * s[one_salt ? 0 : i]);
    });
    params.hit = hit.data;
    params.one = one.data;
    params.table_stride = hit.stride;
  }

 private:
  static void check_count(const Tensor& t, const char* name, int64_t size) {
    STD_TORCH_CHECK(t.numel() == 1 || t.numel() == size, name,
                    " must have 1 element or one per data dimension (", size, "), got shape ",
                    shape_of(t));
  }
};

}  // namespace

Tensor corrupt_cpu(const Tensor& x, const std::string& kind, const Tensor& rate,
                   const std::optional<Tensor>& salt, const Tensor& seed, int64_t copies,
                   int64_t first_example, int64_t first_copy) {
  check_shape(x, "x", {-1, -1});
  STD_TORCH_CHECK(copies >= 0, "copies must be >= 0, got ", copies);
  const DType dtype = dtype_of(x, "x");
  const Tensor in = packed(x);
  const int64_t examples = x.sizes()[0], size = x.sizes()[1];
  Corruption c(kind, rate, salt, x, copies, examples, size,
               noise_params(seed, first_example, first_copy));
  Tensor out = empty(x, {copies, examples, size}, x.scalar_type());
  c.params.in = in.const_data_ptr();
  c.params.out = out.mutable_data_ptr();
  const auto kernel = cpu::kernels().corrupt[static_cast<int>(dtype)];
  for_rows(copies * examples, size,
           [&](int64_t begin, int64_t end) { kernel(c.params, begin, end); });
  return out;
}

Tensor corrupt_backward_cpu(const Tensor& grad, const std::string& kind, const Tensor& rate,
                            const std::optional<Tensor>& salt, const Tensor& seed,
                            int64_t first_example, int64_t first_copy) {
  check_shape(grad, "grad", {-1, -1, -1});
  const DType dtype = dtype_of(grad, "grad");
  const Tensor in = packed(grad);
  const int64_t copies = grad.sizes()[0], examples = grad.sizes()[1], size = grad.sizes()[2];
  Corruption c(kind, rate, salt, grad, copies, examples, size,
               noise_params(seed, first_example, first_copy));
  Tensor out = empty(grad, {examples, size}, grad.scalar_type());
  c.params.in = in.const_data_ptr();
  c.params.out = out.mutable_data_ptr();
  const auto kernel = cpu::kernels().corrupt_backward[static_cast<int>(dtype)];
  for_rows(examples, size * copies,
           [&](int64_t begin, int64_t end) { kernel(c.params, begin, end); });
  return out;
}

Tensor corrupt_backward_std_cpu(const Tensor& grad, const Tensor& std, const Tensor& seed,
                                int64_t first_example, int64_t first_copy) {
  check_shape(grad, "grad", {-1, -1, -1});
  const DType dtype = dtype_of(grad, "grad");
  const Tensor in = packed(grad);
  const int64_t copies = grad.sizes()[0], examples = grad.sizes()[1], size = grad.sizes()[2];
  Corruption c("gaussian", std, std::nullopt, grad, copies, examples, size,
               noise_params(seed, first_example, first_copy));
  c.params.in = in.const_data_ptr();
  const int64_t padded = round_up_to_block(size);
  const std::unique_ptr<double[]> sums(new double[static_cast<size_t>(padded)]());
  const auto kernel = cpu::kernels().corrupt_backward_std[static_cast<int>(dtype)];
  for_rows(padded / kBlock, copies * examples * kBlock,
           [&](int64_t begin, int64_t end) { kernel(c.params, sums.get(), begin, end); });
  Tensor out = new_like(std);
  const int64_t count = std.numel();
  const auto put = [&](auto* to) {
    using V = std::remove_pointer_t<decltype(to)>;
    double total = 0;
    for (int64_t i = 0; i < size; ++i) {
      if (count != 1) to[i] = static_cast<V>(sums[static_cast<size_t>(i)]);
      total += sums[static_cast<size_t>(i)];
    }
    if (count == 1) to[0] = static_cast<V>(total);
  };
  if (std.scalar_type() == ScalarType::Double) {
    put(static_cast<double*>(out.mutable_data_ptr()));
  } else {
    put(static_cast<float*>(out.mutable_data_ptr()));
  }
  return out;
}

}  // namespace dvae::glue
