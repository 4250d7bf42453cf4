// A thread's part of a row's noise.
#pragma once

#include "../core/noise.h"
#include "device.cuh"

namespace dvae::cuda {

constexpr int kGroups = kBlock / kLanes;  // words of a counter

// kGroup neighbouring counters of a block of 64 elements, and so kGroups groups of kGroup
// consecutive elements, 16 apart: each group is one access, and with kGroup = 16 bytes' worth of
// elements the accesses of a warp cover whole sectors.
template <int kGroup>
struct NoiseUnit {
  static constexpr int kPerBlock = kLanes / kGroup;
  int64_t block;
  int lane;

  explicit DVAE_DEVICE NoiseUnit(int64_t unit)
      : block(unit / kPerBlock), lane(static_cast<int>(unit % kPerBlock) * kGroup) {}

  static DVAE_DEVICE int64_t per_row(int64_t size) {
    return (size + kBlock - 1) / kBlock * kPerBlock;
  }
  // The first element of a group; it exists if it lies below the row's size, a multiple of kGroup.
  DVAE_DEVICE int64_t element(int group) const { return block * kBlock + group * kLanes + lane; }

  DVAE_DEVICE void words(uint32_t sample, uint32_t example, uint32_t stream, Key key,
                         uint32_t (&w)[kGroups][kGroup]) const {
    DVAE_UNROLL
    for (int i = 0; i < kGroup; ++i) {
      noise_lane(block, lane + i, sample, example, stream, key, w[0][i], w[1][i], w[2][i], w[3][i]);
    }
  }
  // Normals of the groups below `size`; the others may be left 0.
  template <class A>
  DVAE_DEVICE void normals(uint32_t sample, uint32_t example, uint32_t stream, Key key,
                           int64_t size, A (&n)[kGroups][kGroup]) const {
    uint32_t w[kGroups][kGroup];
    words(sample, example, stream, key, w);
    DVAE_UNROLL
    for (int g = 0; g < kGroups; g += 2) {
      if (element(g) < size) {
        DVAE_UNROLL
        for (int i = 0; i < kGroup; ++i) normal_pair(w[g][i], w[g + 1][i], n[g][i], n[g + 1][i]);
      } else {
        DVAE_UNROLL
        for (int i = 0; i < kGroup; ++i) n[g][i] = n[g + 1][i] = A(0);
      }
    }
  }
};

}  // namespace dvae::cuda
