// What the CPU's operators share: threads over rows, and tensors' data.
#pragma once

#include "../../cpu/masked.h"
#include "../../cpu/rows.h"
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

// The same where csrc/cpu shares out its work.
inline void share(int64_t rows, int64_t row_size, const cpu::Part& body) {
  for_rows(rows, row_size, body);
}

using cpu::round_up_to_block;

// A decoder's mask; null where all is observed.
const cpu::Mask* mask_of(const Decoder& d);

// Runs kernel(scale_sum, begin, end) over rows, and leaves in grad_scale the gradient of a scale
// that they share.
void over_rows_with_scale(const Decoder& d, int64_t rows, int64_t row_size, In grad_scale,
                          const std::function<void(double*, int64_t, int64_t)>& kernel);

// f(data) with a tensor's data as pointer to its elements' type.
template <class F>
auto with_data(In t, const F& f) {
  return cpu::with_data(dtype_of(t, "a tensor"), t.const_data_ptr(), f);
}

}  // namespace dvae::glue
