// mixture_log_ratio: z (B, K, Z), mean and log_var (M, B, Z) → log_ratio (B, K), weights (B, K, M).
//
// Bytes: z once from memory, then M times from the first-level cache, as are the example's
// components; 3 · 4 M bytes a row for the weights, written twice and read once. Bound by
// arithmetic: 19 instructions an element and component, and what is left of a unit as much again.
// Registers (sm_90a, float32): 80.
#include "../core/mean_exp.h"
#include "mixture.cuh"

namespace dvae::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    mixture_kernel(const MixtureParams p, const MixtureLayout l) {
  using A = accumulate_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % l.team;
  const int64_t units = LatentUnit::per_row(p.size);
  // Teams of a warp stay together, as the sums over lanes need: the last ones repeat an item.
  const int64_t teams = item_stride() / l.team, team = first_item() / l.team;
  const int64_t warp_first = (first_item() - threadIdx.x % kWarp) / l.team;
  for (int64_t first = 0; warp_first + first < l.items; first += teams) {
    const bool own = team + first < l.items;
    const MixtureItem item(p, l, own ? team + first : l.items - 1);
    A top[kChunk], z_squares[kChunk] = {};  // the latter this lane's part
    DVAE_UNROLL
    for (int c = 0; c < kChunk; ++c) {
      top[c] = -infinity<A>();
      for (int64_t u = lane; u < units; u += l.team) {
        const LatentUnit unit(u);
        A part = 0;
        DVAE_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          const int64_t j = unit.element(g);
          if (j >= p.size) continue;
          const A z = load(*at<T>(p.z, item.row(c) * p.size + j));
          part = part + z * z;
        }
        z_squares[c] = z_squares[c] + part;
      }
    }
    for (int64_t m = 0; m < p.components; ++m) {
      A squares[kChunk] = {}, log_var = 0;
      for (int64_t u = lane; u < units; u += l.team) {
        const LatentUnit unit(u);
        LatentElements<T> e;
        e.read(p, m * p.examples + item.example, unit, kInverseStd<A>);
        // Of the unit by itself: fewer terms in one float of a long row.
        A part[kChunk] = {}, part_log_var = 0;
        DVAE_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          const int64_t j = unit.element(g);
          if (j >= p.size) continue;
          part_log_var = part_log_var + e.log_var[g];
          DVAE_UNROLL
          for (int c = 0; c < kChunk; ++c) {
            const A z = load(*at<T>(p.z, item.row(c) * p.size + j));
            const A noise = DiagonalNormal::standardise(z, e.mean[g], e.factor[g]);
            part[c] = part[c] + noise * noise;
          }
        }
        log_var = log_var + part_log_var;
        DVAE_UNROLL
        for (int c = 0; c < kChunk; ++c) squares[c] = squares[c] + part[c];
      }
      DVAE_UNROLL
      for (int c = 0; c < kChunk; ++c) {
        // A sum over lanes of each lane's: the ratio is linear in its sums.
        const A v =
            -team_sum(DiagonalNormal::log_ratio_of_sums(squares[c], log_var, z_squares[c]), l.team);
        top[c] = v > top[c] ? v : top[c];
        // Left with the lane that reads it again below.
        if (own && c < item.count && lane == (m & (l.team - 1))) {
          *at<A>(p.weights, item.row(c) * p.components + m) = v;
        }
      }
    }
    DVAE_UNROLL
    for (int c = 0; c < kChunk; ++c) {
      const int64_t row = item.row(c);
      A* w = at<A>(p.weights, row * p.components);
      const int64_t stop = own && c < item.count ? p.components : 0;
      MaxSum<A> s{top[c], A(0)};
      for (int64_t m = lane; m < stop; m += l.team) s.sum = s.sum + sum_term(w[m], s.max);
      s.sum = team_sum(s.sum, l.team);
      const A inverse = inverse_of(s);
      for (int64_t m = lane; m < stop; m += l.team) w[m] = shifted_exp(w[m], s.max) * inverse;
      if (stop > 0 && lane == 0) *at<A>(p.log_ratio, row) = -bound_of(s, p.components);
    }
  }
}

}  // namespace

cudaError_t mixture_log_ratio(DType dtype, const MixtureParams& p, cudaStream_t stream) {
  if (p.examples == 0 || p.samples == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  const MixtureLayout l = mixture_layout(p);
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(&mixture_kernel<T>, grid_of(blocks_for(device, l.items * l.team, kThreads)),
                  kThreads, 0, stream, p, l);
  });
}

}  // namespace dvae::cuda
