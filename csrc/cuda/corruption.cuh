// What corrupt and its gradient share: thresholds, and the choice of a kernel.
#pragma once

#include "../core/corruptions.h"
#include "launch.cuh"
#include "noise_unit.cuh"
#include "pack.cuh"

namespace dvae::cuda {

// Thresholds of element j, from the rates as they lie on the device.
DVAE_DEVICE int32_t hit_threshold(const CorruptParams& p, int64_t j) {
  return threshold(p.rate[j * p.rate_step]);
}
DVAE_DEVICE int32_t one_threshold(const CorruptParams& p, int64_t j) {
  return p.salt == nullptr ? 0 : threshold(p.rate[j * p.rate_step] * p.salt[j * p.salt_step]);
}

// Elements in an access: 16 bytes' worth, but no more than four, which already cover whole sectors;
// eight would take twice the registers.
template <class T>
constexpr int kNoiseGroup = kPack<T> < 4 ? kPack<T> : 4;

// f(kernel's corruption, T, elements in an access, whether each element has a rate).
template <class F>
cudaError_t with_corruption(DType dtype, const CorruptParams& p, const F& f) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto with_group = [&](auto corruption, auto each) {
      using Vector = std::integral_constant<int, kNoiseGroup<T>>;
      using Scalar = std::integral_constant<int, 1>;
      return packs_fit<T>(p.size, kNoiseGroup<T>, {p.in, p.out})
                 ? f(corruption, type, Vector(), each)
                 : f(corruption, type, Scalar(), each);
    };
    return with_corruption(p.kind, [&](auto corruption) {
      if constexpr (decltype(corruption)::kDraws != Draws::kNothing) {
        if (p.rate_step != 0 || p.salt_step != 0) return with_group(corruption, std::true_type());
      }
      return with_group(corruption, std::false_type());
    });
  });
}

}  // namespace dvae::cuda
