// sample_latent: mean, log_var (M, B, Z) → z (M, B, K, Z) and log_ratio (M, B, K).
// latent_log_ratio: the same log_ratio for z from elsewhere.
//
// Bytes an element of z: sizeof(T), plus 2/K · sizeof(T) for mean and log_var. Sampling is bound
// by arithmetic: about 85 instructions an element, for a quarter of a Philox call, half a
// Box–Muller and the ratio. Registers (sm_90a, float32): 64 sampling, 51 not.
#include "latent.cuh"

namespace dvae::cuda {
namespace {

// How the samples of a row are shared out: a team of lanes takes a row and `chunk` samples of it.
struct LatentLayout {
  int team;
  int64_t chunk, chunks;
  int64_t items;  // rows · chunks
};

template <class T, bool kSampled>
__global__ void __launch_bounds__(kThreads, 1) latent_kernel(const Latent p, const LatentLayout l) {
  using A = accumulate_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % l.team;
  const int64_t units = LatentUnit::per_row(p.size);
  // Teams of a warp stay together, as the sums over lanes need: the last ones repeat an item.
  const int64_t teams = item_stride() / l.team, team = first_item() / l.team;
  const int64_t warp_first = (first_item() - threadIdx.x % kWarp) / l.team;
  for (int64_t first = 0; warp_first + first < l.items; first += teams) {
    const bool own = team + first < l.items;
    const Quotient at_item = divide(own ? team + first : l.items - 1, l.chunks);
    const int64_t row = at_item.quotient, k0 = at_item.remainder * l.chunk;
    const int64_t k1 = minimum(k0 + l.chunk, p.samples);
    LatentNoise noise{};
    if constexpr (kSampled) noise = latent_noise(p, row);
    LatentElements<T> e;
    int64_t held = -1;  // the unit that e is of
    // A chunk may be shorter than another team's of this warp.
    for (int64_t k = k0; k < k0 + l.chunk; ++k) {
      const bool write = own && k < k1;
      A ratio = 0;
      for (int64_t u = lane; u < units; u += l.team) {
        const LatentUnit unit(u);
        if (u != held) e.read(p, row, unit, kLatentPower<A, kSampled>);
        held = u;
        [[maybe_unused]] A n[kGroups][1];
        if constexpr (kSampled) noise.normals(unit, k, p.size, n);
        const int64_t to = (row * p.samples + minimum(k, p.samples - 1)) * p.size;
        DVAE_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          const int64_t j = unit.element(g);
          if (j >= p.size) continue;
          if constexpr (kSampled) {
            const A z = e.mean[g] + e.factor[g] * n[g][0];
            if (write) store(*at<T>(p.z, to + j), z);
            ratio = ratio + DiagonalNormal::log_ratio(n[g][0], z, e.log_var[g]);
          } else {
            const A z = load(*at<T>(static_cast<const void*>(p.z), to + j));
            ratio = ratio + DiagonalNormal::log_ratio_at(z, e.mean[g], e.factor[g], e.log_var[g]);
          }
        }
      }
      ratio = team_sum(ratio, l.team);
      if (write && lane == 0) *at<A>(p.log_ratio, row * p.samples + k) = ratio;
    }
  }
}

template <bool kSampled>
cudaError_t run(DType dtype, const Latent& p, cudaStream_t stream) {
  const int64_t rows = p.copies * p.examples;
  if (rows == 0 || p.samples == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  LatentLayout l{};
  // One unit a lane for up to 128 elements.
  const int64_t units = divide_up(p.size, kBlock) * kLanes;
  l.team = units <= kLanes ? kLanes : kWarp;
  // A row's exponentials serve several samples when there are threads enough for all.
  const int64_t busy = int64_t{device.multiprocessors} * 1024;
  l.chunk =
      std::clamp<int64_t>(rows * p.samples * l.team / busy, 1, std::min<int64_t>(p.samples, 16));
  l.chunks = divide_up(p.samples, l.chunk);
  l.items = rows * l.chunks;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(&latent_kernel<T, kSampled>,
                  grid_of(blocks_for(device, l.items * l.team, kThreads)), kThreads, 0, stream, p,
                  l);
  });
}

}  // namespace

cudaError_t sample_latent(DType dtype, const Latent& p, cudaStream_t stream) {
  return run<true>(dtype, p, stream);
}

cudaError_t latent_log_ratio(DType dtype, const Latent& p, cudaStream_t stream) {
  return run<false>(dtype, p, stream);
}

}  // namespace dvae::cuda
