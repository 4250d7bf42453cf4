// What the mixture kernels share: a team of lanes takes an example and kChunk of its samples, so
// that a component's elements and their exponentials are read once for all of them.
#pragma once

#include "latent.cuh"

namespace dvae::cuda {

constexpr int kChunk = 4;

// Of the factor that LatentElements reads, 1/σ.
template <class A>
constexpr A kInverseStd = A(-0.5);

struct MixtureLayout {
  int team;
  int64_t chunks;  // of an example's samples
  int64_t items;   // examples · chunks
};

// One unit a lane for up to 128 elements.
inline MixtureLayout mixture_layout(const MixtureParams& p) {
  const int64_t units = divide_up(p.size, kBlock) * kLanes, chunks = divide_up(p.samples, kChunk);
  return {units <= kLanes ? kLanes : kWarp, chunks, p.examples * chunks};
}

// Where the samples of one item lie: row r(c) of (example, sample), the last again past the end.
struct MixtureItem {
  int64_t example, first, count;

  DVAE_DEVICE MixtureItem(const MixtureParams& p, const MixtureLayout& l, int64_t item) {
    const Quotient at_item = divide(item, l.chunks);
    example = at_item.quotient;
    first = example * p.samples + at_item.remainder * kChunk;
    count = minimum(kChunk, p.samples - at_item.remainder * kChunk);
  }
  DVAE_DEVICE int64_t row(int c) const { return first + minimum(c, count - 1); }
};

}  // namespace dvae::cuda
