// Numbers laid out in the blocks that the kernels read.
#pragma once

#include <memory>

#include "../core/corruptions.h"
#include "../core/noise.h"
#include "kernels.h"

namespace dvae::cpu {

inline int64_t round_up_to_block(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

// A parameter of one element or one per dimension, as the kernels read it: whole blocks of 64, or
// one block that serves all (stride 0).
template <class V>
struct BlockTable {
  alignas(64) V shared[kBlock];
  std::unique_ptr<V[]> own;
  const V* data = nullptr;
  int64_t stride = 0;

  // value(i) of element i, or of 0 for all. A loop for each kind of value: a table may be as large
  // as a batch, and is to take less time than what it is for.
  template <class F>
  void fill(bool one_element, int64_t size, const F& value) {
    if (one_element) {
      const V v = value(0);
      for (V& s : shared) s = v;
      data = shared;
      stride = 0;
      return;
    }
    const int64_t whole = round_up_to_block(size);
    own.reset(new V[static_cast<size_t>(whole)]);
    V* const to = own.get();
    for (int64_t i = 0; i < size; ++i) to[i] = value(i);
    for (int64_t i = size; i < whole; ++i) to[i] = V{};
    data = to;
    stride = kBlock;
  }
};

// What CorruptParams say, in blocks.
struct CorruptionTables {
  CorruptTables params{};
  BlockTable<int32_t> hit, one;
  BlockTable<float> std32;
  BlockTable<double> std64;

  CorruptionTables(DType dtype, const CorruptParams& p) {
    static_cast<CorruptParams&>(params) = p;
    if (p.std != nullptr) {
      dtype == DType::kFloat64 ? fill(std64, p) : fill(std32, p);
    } else if (p.rate != nullptr) {
      const bool shared = p.rate_step == 0 && p.salt_step == 0;
      const float *const rate = p.rate, *const salt = p.salt;
      if (p.rate_step == 0) {
        hit.fill(shared, p.size, [at = threshold(*rate)](int64_t) { return at; });
      } else {
        hit.fill(false, p.size, [rate](int64_t i) { return threshold(rate[i]); });
      }
      if (salt == nullptr) {
        one.fill(shared, p.size, [](int64_t) { return 0; });
      } else if (p.rate_step == 0) {
        one.fill(shared, p.size, [r = *rate, salt](int64_t i) { return threshold(r * salt[i]); });
      } else if (p.salt_step == 0) {
        one.fill(false, p.size, [rate, s = *salt](int64_t i) { return threshold(rate[i] * s); });
      } else {
        one.fill(false, p.size, [rate, salt](int64_t i) { return threshold(rate[i] * salt[i]); });
      }
      params.hit = hit.data;
      params.one = one.data;
      params.table_stride = hit.stride;
    }
  }

 private:
  template <class A>
  void fill(BlockTable<A>& table, const CorruptParams& p) {
    const A* std = static_cast<const A*>(p.std);
    table.fill(p.rate_step == 0, p.size, [std](int64_t i) { return std[i]; });
    params.stds = table.data;
    params.table_stride = table.stride;
  }
};

}  // namespace dvae::cpu
