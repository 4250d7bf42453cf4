// A scale that all rows share.
#pragma once

#include <cmath>

#include "../core/likelihoods.h"
#include "rows.h"

namespace dvae::cpu {

// What kernels read of one, of an element or `size`: a table of A, which the dtype sums are kept in
// is, and Σ log scale where the likelihood has it.
class ScaleTable {
 public:
  const void* logs = nullptr;  // A, laid out as the table: each element's, for a mask

  // Says to the rows where they are.
  ScaleTable(LikelihoodKind likelihood, DType sums, DType dtype, const void* scale, bool one,
             bool masked, DecoderParams& p) {
    sums == DType::kFloat64 ? fill(in64_, dtype, scale, one, p) : fill(in32_, dtype, scale, one, p);
    if (!has_log_scale(likelihood)) return;
    with_data(dtype, scale, [&](const auto* s) {
      const auto log_scale = [&](int64_t i) {
        const double value = std::log(static_cast<double>(load(s[i])));
        log_sum_ += value;
        return value;
      };
      if (!masked) {
        for (int64_t i = 0; i < (one ? 1 : p.size); ++i) log_scale(i);
      } else if (sums == DType::kFloat64) {
        logs64_.fill(one, p.size, log_scale);
        logs = logs64_.data;
      } else {
        logs32_.fill(one, p.size, [&](int64_t i) { return static_cast<float>(log_scale(i)); });
        logs = logs32_.data;
      }
    });
    if (one) log_sum_ *= static_cast<double>(p.size);
    p.log_scale = &log_sum_;
  }
  ScaleTable(const ScaleTable&) = delete;

 private:
  template <class A>
  static void fill(BlockTable<A>& table, DType dtype, const void* scale, bool one,
                   DecoderParams& p) {
    with_data(dtype, scale, [&](const auto* s) {
      table.fill(one, p.size, [s](int64_t i) { return static_cast<A>(load(s[i])); });
    });
    p.scale = table.data;
    p.scale_stride = table.stride;
  }

  BlockTable<float> in32_, logs32_;
  BlockTable<double> in64_, logs64_;
  double log_sum_ = 0;
};

}  // namespace dvae::cpu
