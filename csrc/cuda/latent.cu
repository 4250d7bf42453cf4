// sample_latent: mean, log_var (M, B, Z) → z (M, B, K, Z) and log_ratio (M, B, K).
// latent_log_ratio: the same log_ratio for z from elsewhere.
//
// Bytes an element of z: sizeof(T), plus 2/K · sizeof(T) for mean and log_var. Sampling is bound
// by arithmetic: 50 instructions an element (docs/instructions.md), for a quarter of a Philox call,
// half a Box–Muller and the ratio, and 63 at Z = 50, for which a block of 64 is made.
// Registers (sm_90a, float32): 59 sampling, 52 not.
#include "latent.cuh"

namespace dvae::cuda {
namespace {

// How the samples of a row are shared out: a team of lanes takes a row and `chunk` samples of it.
struct LatentLayout {
  int chunk;
  int64_t chunks;
  int64_t items;  // rows · chunks
};

template <class T, bool kSampled, int kTeam>
__global__ void __launch_bounds__(kThreads, 1)
    latent_kernel(const LatentParams p, const LatentLayout l) {
  using A = accumulate_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  // In 32 bits, as the noise's counters are: 64 would be a tenth of the instructions.
  const auto units = static_cast<uint32_t>(LatentUnit::per_row(p.size));
  // Teams of a warp stay together, as the sums over lanes need: the last ones repeat an item.
  const int64_t teams = item_stride() / kTeam, team = first_item() / kTeam;
  const int64_t warp_first = (first_item() - threadIdx.x % kWarp) / kTeam;
  for (int64_t first = 0; warp_first + first < l.items; first += teams) {
    const bool own = team + first < l.items;
    const Quotient at_item = divide(own ? team + first : l.items - 1, l.chunks);
    const int64_t row = at_item.quotient, k0 = at_item.remainder * l.chunk;
    const int count = static_cast<int>(minimum(l.chunk, p.samples - k0));
    const int64_t first_row = row * p.samples + k0;
    LatentNoise noise{};
    if constexpr (kSampled) noise = latent_noise(p, row);
    LatentElements<T> e;
    uint32_t held = units;  // the unit that e is of; yet none
    // A chunk may be shorter than another team's of this warp.
    for (int k = 0; k < l.chunk; ++k) {
      const bool write = own && k < count;
      T* const z = at<T>(p.z, (first_row + (k < count ? k : 0)) * p.size);
      A ratio = 0;
      for (uint32_t u = lane; u < units; u += kTeam) {
        const LatentUnit unit(u);
        if (u != held) e.read(p, row, unit, kLatentPower<A, kSampled>);
        held = u;
        [[maybe_unused]] A n[kGroups][1];
        if constexpr (kSampled) noise.normals(unit, k0 + k, p.size, n);
        T* to = z + unit.element(0);
        const auto left = static_cast<int>(minimum(p.size - unit.element(0), kBlock));
        // A choice of what to add, not of what to do: branches would be two instructions an
        // element.
        DVAE_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          const bool inside = g * kLanes < left;
          A term;
          if constexpr (kSampled) {
            const A made = e.mean[g] + e.factor[g] * n[g][0];
            if (inside && write) store(to[g * kLanes], made);
            term = DiagonalNormal::log_ratio(n[g][0], made, e.log_var[g]);
          } else {
            const A given = inside ? load(to[g * kLanes]) : A(0);
            term = DiagonalNormal::log_ratio_at(given, e.mean[g], e.factor[g], e.log_var[g]);
          }
          ratio = inside ? ratio + term : ratio;
        }
      }
      ratio = team_sum(ratio, kTeam);
      if (write && lane == 0) *at<A>(p.log_ratio, first_row + k) = ratio;
    }
  }
}

template <bool kSampled>
cudaError_t run(DType dtype, const LatentParams& p, cudaStream_t stream) {
  const int64_t rows = p.copies * p.examples;
  if (rows == 0 || p.samples == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  LatentLayout l{};
  // One unit a lane for up to 128 elements.
  const int64_t units = divide_up(p.size, kBlock) * kLanes;
  const int64_t team = units <= kLanes ? kLanes : kWarp;
  // A row's exponentials serve several samples when there are threads enough for all.
  const int64_t busy = int64_t{device.multiprocessors} * 1024;
  l.chunk = static_cast<int>(
      std::clamp<int64_t>(rows * p.samples * team / busy, 1, std::min<int64_t>(p.samples, 16)));
  l.chunks = divide_up(p.samples, l.chunk);
  l.items = rows * l.chunks;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto launch_with = [&](auto kernel) {
      return launch(kernel, grid_of(blocks_for(device, l.items * team, kThreads)), kThreads, 0,
                    stream, p, l);
    };
    return team == kWarp ? launch_with(&latent_kernel<T, kSampled, kWarp>)
                         : launch_with(&latent_kernel<T, kSampled, kLanes>);
  });
}

}  // namespace

cudaError_t sample_latent(DType dtype, const LatentParams& p, cudaStream_t stream) {
  return run<true>(dtype, p, stream);
}

cudaError_t latent_log_ratio(DType dtype, const LatentParams& p, cudaStream_t stream) {
  return run<false>(dtype, p, stream);
}

}  // namespace dvae::cuda
