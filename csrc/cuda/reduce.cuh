// Sums and maxima over teams of threads, in a fixed order; every thread of a team gets the result.
#pragma once

#include "device.cuh"

namespace dvae::cuda {

// Over `team` neighbouring lanes, a power of two up to a warp. All lanes of the warp take part.
template <class A>
DVAE_DEVICE A team_sum(A v, int team) {
  for (int w = team / 2; w > 0; w /= 2) v = v + __shfl_xor_sync(kAllLanes, v, w);
  return v;
}
// NaN is left out: a comparison with it is false.
template <class A>
DVAE_DEVICE A team_max(A v, int team) {
  for (int w = team / 2; w > 0; w /= 2) {
    const A other = __shfl_xor_sync(kAllLanes, v, w);
    v = other > v ? other : v;
  }
  return v;
}

// One warp, or a whole block, whose sums pass through shared memory.
struct WarpTeam {
  static constexpr int kSize = kWarp;
  static DVAE_DEVICE int rank() { return static_cast<int>(threadIdx.x) % kWarp; }
  template <class A>
  static DVAE_DEVICE A sum(A v) {
    return team_sum(v, kWarp);
  }
  template <class A>
  static DVAE_DEVICE A max(A v) {
    return team_max(v, kWarp);
  }
};

template <int kThreads_>
struct BlockTeam {
  static constexpr int kSize = kThreads_;
  static constexpr int kWarps = kThreads_ / kWarp;
  // Shared memory it uses, from its start.
  static constexpr int kBytes = kWarps * 8;

  static DVAE_DEVICE int rank() { return static_cast<int>(threadIdx.x); }
  template <class A>
  static DVAE_DEVICE A sum(A v) {
    const A* parts = exchange(team_sum(v, kWarp));
    A total = parts[0];
    for (int w = 1; w < kWarps; ++w) total = total + parts[w];
    return total;
  }
  template <class A>
  static DVAE_DEVICE A max(A v) {
    const A* parts = exchange(team_max(v, kWarp));
    A top = parts[0];
    for (int w = 1; w < kWarps; ++w) top = parts[w] > top ? parts[w] : top;
    return top;
  }

 private:
  // Every warp's value.
  template <class A>
  static DVAE_DEVICE const A* exchange(A v) {
    A* parts = shared_at<A>();
    __syncthreads();  // what was there has been read
    if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = v;
    __syncthreads();
    return parts;
  }
};

}  // namespace dvae::cuda
