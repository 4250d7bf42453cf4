// log_weights: params (N, K, D) → log_w (N, K), for instantiate.cu.
//
// Bytes an element: sizeof(T) of params (twice that with a full scale); x is read once for kRows
// rows, from the first-level cache. One sweep, nothing written but a number a row.
// Bernoulli takes 13 instructions an element in float32 and 10 in 16 bits (docs/instructions.md); a
// Hopper chip issues some 12 to 18 while 2 bytes arrive.
// Registers (sm_90a), Bernoulli: 121 (float32) and 123 (bfloat16) for four rows, 64 and 66 for one.
#pragma once

#include "density.cuh"
#include "launch.cuh"
#include "likelihoods.h"
#include "reduce.cuh"

namespace dvae::cuda {

// Rows are taken kRows at a time, all of one example: group g is chunk g % chunks of row-set
// first_n + g / chunks.
struct RowGroups {
  int64_t first_n, chunks, groups;
};

// Threads of a block: half the usual, for of 144 registers a thread a multiprocessor holds three
// such blocks, but only one of 256.
constexpr int kRowThreads = 128;

// Blocks of a multiprocessor, at least: with a row at a time, threads matter more than a schedule.
template <class L, class T, int kRows, bool kMask>
constexpr int kRowBlocks = kRows > 1 || L::kHasScale || sizeof(T) == 8 ? 1
                           : sizeof(T) == 4 && !kMask                  ? 8
                                                                       : 6;

template <class L, class T, ScaleKind kScale, bool kBias, bool kVector, int kTeam, int kRows,
          int kAhead, bool kMask>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<L, T, kRows, kMask>)
    log_weights_kernel(const LogWeights p, const RowGroups g) {
  using A = accumulate_t<T>;
  using C = ColumnsOf<T, kVector, kTeam>;
  static_assert(kRows <= kTeam, "lane r writes row r");
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  A constant{};
  if constexpr (!kMask) constant = density_constant<L, A, false>(p, kScale);
  const int64_t teams = item_stride() / kTeam, team = first_item() / kTeam;
  const int64_t warp_first = (first_item() - threadIdx.x % kWarp) / kTeam;
  // Teams of a warp stay together, as the sums over lanes need: the last ones repeat a group.
  for (int64_t next = 0; warp_first + next < g.groups; next += teams) {
    const bool own = team + next < g.groups;
    const Quotient at_group = divide(own ? team + next : g.groups - 1, g.chunks);
    const int64_t n = g.first_n + at_group.quotient;
    const int64_t first = n * p.samples + at_group.remainder * kRows;
    // The example's rows that were asked for; a row outside stands for the nearest inside.
    const int64_t low = maximum(p.begin, n * p.samples);
    const int64_t high = minimum(p.end, (n + 1) * p.samples) - 1;
    const T* params[kRows];
    const T* scales[kRows];
    DVAE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = maximum(low, minimum(high, first + r)) - p.first_row;
      params[r] = at<T>(p.params, row * p.size);
      scales[r] = kScale == ScaleKind::kFull ? at<T>(p.scale, row * p.size) : nullptr;
    }
    A total[kRows] = {};
    add_density<L, T, kScale, kBias, C, kRows, kAhead, false, kMask>(
        example_of<T, kMask>(p, n), params, scales, C::first(lane), p.size, total,
        [](int64_t, auto&, auto&, auto&) {});
    if constexpr (kMask) constant = density_constant<L, A, true>(p, kScale, n);
    DVAE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const A sum = team_sum(total[r], kTeam) + constant;
      const int64_t row = first + r;
      if (own && lane == r && row >= low && row <= high) {
        *at<A>(p.log_w, row) = ratio_of<A>(p, row) + sum;
      }
    }
  }
}

template <class L, class T, ScaleKind kScale, bool kBias, bool kMask>
cudaError_t launch_log_weights(const LogWeights& p, cudaStream_t stream) {
  Device device;
  if (const cudaError_t error = query(device)) return error;
  const auto run = [&](auto kernel, int team, int rows) {
    RowGroups g{};
    g.first_n = p.begin / p.samples;
    g.chunks = divide_up(p.samples, rows);
    g.groups = ((p.end - 1) / p.samples - g.first_n + 1) * g.chunks;
    return launch(kernel, grid_of(blocks_for(device, g.groups * team, kRowThreads)), kRowThreads, 0,
                  stream, p, g);
  };
  const bool vector =
      packs_fit<T>(p.size, kPack<T>, {p.params, p.x, p.bias, scale_rows<kScale>(p), p.mask.seen});
  if (!vector) {
    return run(&log_weights_kernel<L, T, kScale, kBias, false, kWarp, 1, 2, kMask>, kWarp, 1);
  }
  if constexpr (sizeof(T) < 8) {
    // Eight lanes for four rows: x is read once for the four, hardly a lane idles at a row's end,
    // and four loads are under way. Where that leaves the device idle, or chunks of samples
    // half empty, a warp a row. The two add up a row in different orders: to choose by K and D
    // alone, so that a row's bits were the same in any batch, would leave most of a large device
    // idle on a few thousand rows.
    constexpr int kTeam = 8, kRows = 4;
    const int64_t padded = divide_up(p.samples, kRows) * kRows;
    const bool full = padded - p.samples <= p.samples / 8;
    const bool many = (p.end - p.begin) * kTeam / kRows >= int64_t{device.multiprocessors} * 512;
    if (full && many) {
      return run(&log_weights_kernel<L, T, kScale, kBias, true, kTeam, kRows, 1, kMask>, kTeam,
                 kRows);
    }
  }
  return run(&log_weights_kernel<L, T, kScale, kBias, true, kWarp, 1, 2, kMask>, kWarp, 1);
}

template <class L, ScaleKind kScale, bool kMask>
cudaError_t log_weights_scaled(DType dtype, const LogWeights& p, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    // Only tiles of a linear layer have a bias, of a light likelihood, and no scale an element.
    constexpr bool kMayHaveBias = L::kLight && kScale != ScaleKind::kFull;
    if constexpr (kMayHaveBias && !kMask) {
      if (p.bias != nullptr) return launch_log_weights<L, T, kScale, true, false>(p, stream);
    }
    return launch_log_weights < L, T, kScale, kMayHaveBias && kMask, kMask > (p, stream);
  });
}

template <class L, bool kMask>
cudaError_t log_weights_of(DType dtype, [[maybe_unused]] ScaleKind scale, const LogWeights& p,
                           cudaStream_t stream) {
  if constexpr (!L::kHasScale) {
    return log_weights_scaled<L, ScaleKind::kNone, kMask>(dtype, p, stream);
  } else {
    return scale == ScaleKind::kFull
               ? log_weights_scaled<L, ScaleKind::kFull, kMask>(dtype, p, stream)
               : log_weights_scaled<L, ScaleKind::kShared, kMask>(dtype, p, stream);
  }
}

template <class L>
cudaError_t LogWeightsOf<L>::launch(DType dtype, ScaleKind scale, const LogWeights& p,
                                    cudaStream_t stream) {
  return log_weights_of<L, false>(dtype, scale, p, stream);
}

template <class L>
cudaError_t MaskedLogWeightsOf<L>::launch(DType dtype, ScaleKind scale, const LogWeights& p,
                                          cudaStream_t stream) {
  return log_weights_of<L, true>(dtype, scale, p, stream);
}

}  // namespace dvae::cuda
