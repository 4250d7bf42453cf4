// What the latent kernels share. A thread takes units of a row's Z elements (noise_unit.cuh), one
// element an access: rows are short (Z = 50 is usual) and rarely start on 16 bytes, 16 lanes
// cover whole sectors, and with noise the arithmetic of a Box–Muller outweighs the 4 bytes.
#pragma once

#include "../core/latent.h"
#include "launch.cuh"
#include "noise_unit.cuh"
#include "reduce.cuh"

namespace dvae::cuda {

using LatentUnit = NoiseUnit<1>;

// The elements of one unit that do not depend on the sample.
template <class T>
struct LatentElements {
  using A = accumulate_t<T>;
  A mean[kGroups], log_var[kGroups];
  A factor[kGroups];  // σ = e^(½ log_var), or 1/σ²

  // Elements past the row's end are those of its first: harmless, and not stored.
  template <class P>
  DVAE_DEVICE void read(const P& p, int64_t row, const LatentUnit& unit, A power) {
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t j = unit.element(g);
      const int64_t from = row * p.size + (j < p.size ? j : 0);
      mean[g] = load(*at<T>(p.mean, from));
      log_var[g] = load(*at<T>(p.log_var, from));
      factor[g] = exp(power * log_var[g]);
    }
  }
};

// Of σ, and of 1/σ².
template <class A, bool kSampled>
constexpr A kLatentPower = kSampled ? A(0.5) : A(-1);

// The noise of a row's samples.
struct LatentNoise {
  uint32_t example, stream, first_sample;
  Key key;

  template <class A>
  DVAE_DEVICE void normals(const LatentUnit& unit, int64_t sample, int64_t size,
                           A (&n)[kGroups][1]) const {
    unit.normals(first_sample + static_cast<uint32_t>(sample), example, stream, key, size, n);
  }
};

DVAE_DEVICE LatentNoise latent_noise(const LatentParams& p, int64_t row) {
  const Quotient at = divide(row, p.examples);
  return {p.noise.first_example + static_cast<uint32_t>(at.remainder),
          stream_word(kStreamLatent, static_cast<uint32_t>(at.quotient)), p.noise.first_sample,
          key_from_seed(*p.noise.seed)};
}

}  // namespace dvae::cuda
