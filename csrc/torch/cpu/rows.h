// What the CPU's operators share: threads over rows, and sums over rows.
#pragma once

#include <memory>
#include <vector>

#include "../../core/half.h"
#include "../../cpu/masked.h"
#include "../../cpu/tables.h"
#include "../ops/decoder.h"

namespace dvae::glue {

// Elements a thread should have to be worth waking: about 10 µs of work.
constexpr int64_t kGrain = 16384;

// Calls body(begin, end) over disjoint parts of [0, rows), of rows of `row_size` elements each.
template <class F>
void for_rows(int64_t rows, int64_t row_size, const F& body) {
  if (rows == 0) return;
  const int64_t grain = row_size > 0 ? (kGrain + row_size - 1) / row_size : kGrain;
  if (rows <= grain) return body(int64_t{0}, rows);
  torch::stable::parallel_for(0, rows, grain, body);
}

using cpu::BlockTable;
using cpu::round_up_to_block;

// f(data) with a tensor's data as pointer to its elements' type.
template <class F>
auto with_data(In t, const F& f) {
  void* data = const_cast<void*>(t.const_data_ptr());
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return f(static_cast<double*>(data));
    case ScalarType::BFloat16:
      return f(static_cast<BFloat16*>(data));
    case ScalarType::Half:
      return f(static_cast<Half*>(data));
    default:
      return f(static_cast<float*>(data));
  }
}

inline double read_element(In t, int64_t i) {
  return with_data(t, [i](const auto* data) { return static_cast<double>(load(data[i])); });
}

// Σ over rows per dimension into a tensor of one element a dimension, or of one in all.
inline void write_sums(const std::vector<double>& sums, int64_t size, In to) {
  const bool each = to.numel() != 1;
  with_data(to, [&](auto* out) {
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
void add_over_parts(int64_t rows, int64_t row_size, int64_t size, std::vector<double>& sums,
                    const F& kernel) {
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

// The mask of a decoder on the CPU; null where all is observed.
const cpu::Mask* mask_of(const Decoder& d);

// log_weights of a decoder of dense layers, of any dtype but float16 (layers.cpp). Of bfloat16
// without instructions for it, as float32.
void run_layers(const Decoder& d, const std::vector<Layer>& layers, Activation between,
                const LogWeightParams& p);

}  // namespace dvae::glue
