// A likelihood's operands, checked and laid out for the kernels, and its scale's gradient.
#pragma once

#include <cmath>
#include <vector>

#include "../../core/half.h"
#include "../scale.h"
#include "common.h"

namespace dvae::glue {

inline double read_element(const Tensor& t, int64_t i) {
  const void* data = t.const_data_ptr();
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return static_cast<const double*>(data)[i];
    case ScalarType::BFloat16:
      return load(static_cast<const BFloat16*>(data)[i]);
    case ScalarType::Half:
      return load(static_cast<const Half*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

inline void write_element(const Tensor& t, int64_t i, double value) {
  void* data = t.mutable_data_ptr();
  switch (t.scalar_type()) {
    case ScalarType::Double:
      static_cast<double*>(data)[i] = value;
      break;
    case ScalarType::BFloat16:
      store(static_cast<BFloat16*>(data)[i], static_cast<float>(value));
      break;
    case ScalarType::Half:
      store(static_cast<Half*>(data)[i], static_cast<float>(value));
      break;
    default:
      static_cast<float*>(data)[i] = static_cast<float>(value);
  }
}

// A likelihood's scale, as the kernels read it.
struct Scale {
  ScaleKind kind;
  bool log_sum;  // whether they want Σ log scale
  std::optional<Tensor> tensor;
  BlockTable<float> table32;
  BlockTable<double> table64;

  Scale(const std::optional<Tensor>& scale, LikelihoodKind likelihood, const Tensor& params,
        int64_t size)
      : kind(scale_kind(scale, likelihood, params, size)), log_sum(has_log_scale(likelihood)) {
    if (scale) tensor = packed(*scale);
  }

  void fill(LogWeightParams& p, ScalarType sums) {
    if (kind == ScaleKind::kFull) p.scale = tensor->const_data_ptr();
    if (kind != ScaleKind::kShared) return;
    const bool one = tensor->numel() == 1;
    if (sums == ScalarType::Double) {
      table64.fill(one, p.size, [this](int64_t i) { return read_element(*tensor, i); });
      p.scale = table64.data;
      p.scale_stride = table64.stride;
    } else {
      table32.fill(one, p.size,
                   [this](int64_t i) { return static_cast<float>(read_element(*tensor, i)); });
      p.scale = table32.data;
      p.scale_stride = table32.stride;
    }
    p.log_scale_sum = 0;
    if (!log_sum) return;
    for (int64_t i = 0; i < (one ? 1 : p.size); ++i) {
      p.log_scale_sum += std::log(read_element(*tensor, i));
    }
    if (one) p.log_scale_sum *= static_cast<double>(p.size);
  }

  // The gradient of a shared scale from Σ over rows per dimension.
  Tensor reduce(const std::vector<double>& sums, int64_t size) const {
    Tensor out = new_like(*tensor);
    if (tensor->numel() != 1) {
      for (int64_t i = 0; i < size; ++i) write_element(out, i, sums[static_cast<size_t>(i)]);
      return out;
    }
    double total = 0;
    for (int64_t i = 0; i < size; ++i) total += sums[static_cast<size_t>(i)];
    write_element(out, 0, total);
    return out;
  }
};

// Σ over rows, per dimension, of what kernel(sums, begin, end) adds; in parts that do not depend on
// the number of threads, so that the result does not either.
template <class F>
std::vector<double> sum_over_parts(int64_t rows, int64_t row_size, int64_t size, const F& kernel) {
  constexpr int64_t kParts = 16;
  const int64_t padded = round_up_to_block(size);
  std::vector<double> sums(static_cast<size_t>(kParts * padded));
  for_rows(kParts, (rows * row_size + kParts - 1) / kParts, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernel(sums.data() + part * padded, rows * part / kParts, rows * (part + 1) / kParts);
    }
  });
  for (int64_t part = 1; part < kParts; ++part) {
    for (int64_t i = 0; i < padded; ++i) {
      sums[static_cast<size_t>(i)] += sums[static_cast<size_t>(part * padded + i)];
    }
  }
  sums.resize(static_cast<size_t>(padded));
  return sums;
}

// params (N, K, D), x (B, D) and the scale.
struct Decoder {
  LikelihoodKind likelihood;
  DType dtype;
  Tensor params, x;
  Scale scale;
  LogWeightParams p{};

  Decoder(const Tensor& params_in, const std::optional<Tensor>& scale_in, const Tensor& x_in,
          const std::string& likelihood_in)
      : likelihood(likelihood_kind(likelihood_in)),
        dtype(dtype_of(params_in, "params")),
        params(packed(params_in)),
        x(packed(x_in)),
        scale(scale_in, likelihood, params_in,
              params_in.dim() > 0 ? params_in.sizes()[params_in.dim() - 1] : 0) {
    check_shape(params, "params", {-1, -1, -1});
    p.rows = params.sizes()[0];
    p.samples = params.sizes()[1];
    p.size = params.sizes()[2];
    set_x(p, x, sum_type(params), p.rows);
    if (scale.kind == ScaleKind::kFull) {
      check_shape(*scale.tensor, "scale", {p.rows, p.samples, p.size});
    }
    scale.fill(p, sum_type(params));
    p.params = params.const_data_ptr();
  }

  static void set_x(LogWeightParams& p, const Tensor& x, ScalarType sums, int64_t rows) {
    check_shape(x, "x", {-1, p.size});
    check_dtype(x, "x", sums);
    p.examples = x.sizes()[0];
    STD_TORCH_CHECK(p.examples > 0 ? rows % p.examples == 0 : rows == 0,
                    "x must have a number of examples that divides the rows, ", rows, ", got ",
                    p.examples);
    p.x = x.const_data_ptr();
  }

  void check_rows(const Tensor& t, const char* name) const {
    check_shape(t, name, {p.rows, p.samples});
    check_dtype(t, name, sum_type(params));
  }

  // A gradient buffer for a scale per element, else nothing.
  Tensor full_scale_gradient() {
    if (scale.kind != ScaleKind::kFull) return empty(params, {0}, params.scalar_type());
    Tensor out = new_like(*scale.tensor);
    p.grad_scale = out.mutable_data_ptr();
    return out;
  }

  // Runs kernel(scale_sum, begin, end) over rows; a shared scale's gradient takes the place of
  // grad_scale.
  template <class F>
  void sum_scale_over(int64_t rows, int64_t row_size, Tensor& grad_scale, const F& kernel) {
    if (scale.kind != ScaleKind::kShared) {
      for_rows(rows, row_size, [&](int64_t begin, int64_t end) { kernel(nullptr, begin, end); });
      return;
    }
    const std::vector<double> sums = sum_over_parts(rows, row_size, p.size, kernel);
    grad_scale = scale.reduce(sums, p.size);
  }
};

}  // namespace dvae::glue
