// Shared by the CPU operators: threads, the seed, and parameters laid out in blocks.
#pragma once

#include <memory>

#include "../../core/noise.h"
#include "../../cpu/kernels.h"
#include "../tensor.h"

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

inline NoiseParams noise_params(const Tensor& seed, int64_t first_example, int64_t first_sample) {
  check_seed(seed);
  STD_TORCH_CHECK(first_example >= 0 && first_example <= UINT32_MAX && first_sample >= 0 &&
                      first_sample <= UINT32_MAX,
                  "first_example and first_sample must lie in [0, 2**32), got ", first_example,
                  " and ", first_sample);
  return {*static_cast<const int64_t*>(seed.const_data_ptr()), static_cast<uint32_t>(first_example),
          static_cast<uint32_t>(first_sample)};
}

inline int64_t round_up_to_block(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// A parameter of one element or one per dimension, as the kernels read it: whole blocks of 64, or
// one block that serves all (stride 0).
template <class V>
struct BlockTable {
  alignas(64) V shared[kBlock];
  std::unique_ptr<V[]> own;
  const V* data = nullptr;
  int64_t stride = 0;

  // value(i) of element i, or of 0 for all.
  template <class F>
  void fill(bool one_element, int64_t size, const F& value) {
    if (one_element) {
      const V v = value(0);
      for (V& s : shared) s = v;
      data = shared;
      stride = 0;
      return;
    }
    own.reset(new V[static_cast<size_t>(round_up_to_block(size))]());
    for (int64_t i = 0; i < size; ++i) own[static_cast<size_t>(i)] = value(i);
    data = own.get();
    stride = kBlock;
  }
};

inline const float* float_data(const Tensor& t, const char* name) {
  check_dtype(t, name, ScalarType::Float);
  return static_cast<const float*>(t.const_data_ptr());
}

}  // namespace dvae::glue
