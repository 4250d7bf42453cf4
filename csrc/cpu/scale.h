// A scale that all rows share.
#pragma once

#include <cmath>
#include <type_traits>

#include "../core/likelihoods.h"
#include "rows.h"

namespace dvae::cpu {

// What kernels read of one, of an element or `size`: a table of A, which the dtype sums are kept in
// is, and Σ log scale where the likelihood has it.
class ScaleTable {
 public:
  // A, laid out as the table: −row_constant of each element, for a mask.
  const void* constants = nullptr;

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
        return;
      }
      const double each = row_constant(likelihood, 1, 0.0);
      const auto fill_constants = [&](auto& table) {
        using A = std::decay_t<decltype(*table.data)>;
        table.fill(one, p.size, [&](int64_t i) { return static_cast<A>(log_scale(i) - each); });
        constants = table.data;
      };
      sums == DType::kFloat64 ? fill_constants(constants64_) : fill_constants(constants32_);
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

  BlockTable<float> in32_, constants32_;
  BlockTable<double> in64_, constants64_;
  double log_sum_ = 0;
};

}  // namespace dvae::cpu
