// A likelihood's operands, checked and laid out for the CUDA kernels, and its scale's gradient.
#pragma once

#include <algorithm>

#include "../scale.h"
#include "common.h"

namespace dvae::glue {

// A likelihood's scale.
struct ScaleOnDevice {
  ScaleKind kind;
  bool log_sum;  // whether the kernels want Σ log scale
  std::optional<Tensor> given;
  std::optional<Tensor> data;       // as the kernels read it
  std::optional<Tensor> log_scale;  // Σ_d log scale, one float64

  ScaleOnDevice(const std::optional<Tensor>& scale, LikelihoodKind likelihood, const Tensor& params,
                int64_t size)
      : kind(scale_kind(scale, likelihood, params, size)),
        log_sum(has_log_scale(likelihood)),
        given(scale) {
    if (!scale) return;
    data = packed(*scale);
    if (kind == ScaleKind::kShared && scale->scalar_type() != sum_type(params)) {
      data = torch::stable::to(*data, sum_type(params));
    }
  }

  void fill(cuda::LogWeights& p, DType dtype, const OnDevice& device) {
    if (kind == ScaleKind::kNone) return;
    p.scale = data->const_data_ptr();
    if (kind != ScaleKind::kShared) return;
    p.scale_stride = data->numel() == 1 ? 0 : 1;
    if (!log_sum) return;
    log_scale = empty(*data, {1}, ScalarType::Double);
    auto* out = static_cast<double*>(log_scale->mutable_data_ptr());
    check_launch(cuda::log_scale_sum(dtype, p.scale, data->numel(), p.size, out, device.stream()),
                 "log_scale_sum");
    p.log_scale = out;
  }
};

// Sums over rows per dimension, in parts that do not depend on the device's scheduling.
struct PartialSums {
  Tensor parts;
  int64_t count, size;

  PartialSums(const Tensor& like, int64_t rows, int64_t size_in)
      : parts(empty(like, {cuda::sum_parts(rows, size_in), size_in}, ScalarType::Double)),
        count(parts.sizes()[0]),
        size(size_in) {}
  double* data() const { return static_cast<double*>(parts.mutable_data_ptr()); }
  // out: of one element, or one a dimension.
  void finish(const Tensor& out, const OnDevice& device) const {
    check_launch(cuda::finish_sums(dtype_of(out, "sums"), data(), count, size,
                                   out.mutable_data_ptr(), out.numel(), device.stream()),
                 "finish_sums");
  }
};

inline void set_x(cuda::LogWeights& p, const Tensor& x, const Tensor& like, int64_t rows) {
  check_shape(x, "x", {-1, p.size});
  check_dtype(x, "x", sum_type(like));
  check_device(x, "x", like);
  p.examples = x.sizes()[0];
  STD_TORCH_CHECK(p.examples > 0 ? rows % p.examples == 0 : rows == 0,
                  "x must have a number of examples that divides the rows, ", rows, ", got ",
                  p.examples);
  p.x = x.const_data_ptr();
}

inline void check_rows(const Tensor& t, const char* name, const cuda::LogWeights& p,
                       const Tensor& like) {
  check_shape(t, name, {p.rows, p.samples});
  check_dtype(t, name, sum_type(like));
  check_device(t, name, like);
}

}  // namespace dvae::glue
