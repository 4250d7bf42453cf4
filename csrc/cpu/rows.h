// Work over rows, shared out among threads by the caller; sums over rows; data of any dtype.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "../core/half.h"
#include "tables.h"

namespace dvae::cpu {

// Calls the body on disjoint parts of [0, rows), of rows of `row_size` elements each.
using Part = std::function<void(int64_t begin, int64_t end)>;
using ForRows = std::function<void(int64_t rows, int64_t row_size, const Part&)>;

// f(data) with a pointer to elements of their type.
template <class F>
auto with_data(DType dtype, const void* of, const F& f) {
  void* data = const_cast<void*>(of);
  switch (dtype) {
    case DType::kFloat64:
      return f(static_cast<double*>(data));
    case DType::kBFloat16:
      return f(static_cast<BFloat16*>(data));
    case DType::kFloat16:
      return f(static_cast<Half*>(data));
    default:
      return f(static_cast<float*>(data));
  }
}

// Σ over rows per dimension, into one element a dimension or one in all.
inline void write_sums(const std::vector<double>& sums, int64_t size, DType dtype, void* to,
                       bool each) {
  with_data(dtype, to, [&](auto* out) {
    using A = decltype(load(*out));
    double total = 0;
    for (int64_t i = 0; i < size; ++i) {
      total += sums[static_cast<size_t>(i)];
      if (each) store(out[i], static_cast<A>(sums[static_cast<size_t>(i)]));
    }
    if (!each) store(out[0], static_cast<A>(total));
  });
}

// Adds to `sums` Σ over rows, per dimension, of what kernel(sums, begin, end) adds; in parts that
// do not depend on the number of threads, so that the result does not either.
template <class F>
void add_over_parts(const ForRows& for_rows, int64_t rows, int64_t row_size, int64_t size,
                    std::vector<double>& sums, const F& kernel) {
  constexpr int64_t kParts = 16;
  const auto padded = static_cast<size_t>(round_up_to_block(size));
  std::vector<double> parts(kParts * padded);
  for_rows(kParts, (rows * row_size + kParts - 1) / kParts, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      kernel(parts.data() + static_cast<size_t>(part) * padded, rows * part / kParts,
             rows * (part + 1) / kParts);
    }
  });
  sums.resize(padded);
  for (const double* part = parts.data(); part != parts.data() + parts.size(); part += padded) {
    for (size_t i = 0; i < padded; ++i) sums[i] += part[i];
  }
}

// Adds to `sums`, of whole blocks, Σ over rows, per dimension, of T (rows, size).
inline void add_columns(const ForRows& for_rows, DType dtype, const void* in, int64_t rows,
                        int64_t size, std::vector<double>& sums) {
  const auto kernel = kernels().add_column_sums[static_cast<int>(dtype)];
  const auto blocks = static_cast<int64_t>(sums.size()) / kBlock;
  for_rows(blocks, rows * kBlock, [&](int64_t begin, int64_t end) {
    kernel(in, rows, size, sums.data(), begin * kBlock, std::min(size, end * kBlock));
  });
}

// kernel(scale_sum, begin, end) over all rows. The gradient of a scale that they share goes to
// `sums`, as above; of no such scale scale_sum is null.
template <class F>
void add_scale_over(const ForRows& for_rows, ScaleKind kind, int64_t rows, int64_t row_size,
                    int64_t size, std::vector<double>& sums, const F& kernel) {
  if (kind == ScaleKind::kShared) {
    add_over_parts(for_rows, rows, row_size, size, sums, kernel);
  } else {
    for_rows(rows, row_size, [&](int64_t begin, int64_t end) { kernel(nullptr, begin, end); });
  }
}

// grad (rows, size) *= factor, of one element or `rows`.
inline void rescale(const ForRows& for_rows, DType dtype, void* grad, DType factor_type,
                    const void* factor, bool one, int64_t rows, int64_t size) {
  const auto kernel = kernels().scale_by[static_cast<int>(dtype)];
  with_data(factor_type, factor, [&](const auto* factors) {
    for_rows(rows, size, [&](int64_t begin, int64_t end) {
      if (one) return kernel(grad, load(*factors), begin * size, end * size);
      for (int64_t n = begin; n < end; ++n) {
        kernel(grad, load(factors[n]), n * size, (n + 1) * size);
      }
    });
  });
}

}  // namespace dvae::cpu
