// The fused loss: bound, normalised weights and gradient from one read of the decoder output, for
// instantiate.cu.
//
// Fused, while K · D of one example fits in a block's shared memory: 2 · sizeof(T) bytes an element
// (4 with a full scale), read once and written once. Otherwise sweep, normalise, scale: three
// kernels and 3 · sizeof(T). A Hopper block has 227 KiB: K = 74 in float32 and 147 in bfloat16 at
// D = 784. A shared scale takes the second way, where its gradient is summed over rows.
// Registers (sm_90a): Bernoulli 64 in float32 and 16 bits; Gaussian 70–83, in blocks half the size.
#pragma once

#include "density.cuh"
#include "launch.cuh"
#include "likelihoods.h"
#include "reduce.cuh"
#include "row_bound.cuh"

namespace dvae::cuda {

// How a block shares out an example: `warps` of them take items (sample k, segment of columns),
// item = warp, + warps, …; each warp meets the same elements in both sweeps, so that only
// log-weights cross between warps.
struct FusedLayout {
  int warps;
  int segments;  // of a row
  int64_t segment;  // columns of one
  int64_t row_bytes;  // of what is held of a row
  int64_t density_at;  // byte where the K · segments partial log-densities begin
  int64_t shared_bytes;
};

// What is held of an element: Bernoulli's derivative where that is exact, so that the second sweep
// is one multiplication; else the params (and scale), and the derivative is made from them.
template <class L, class T>
constexpr bool kHoldDerivative = L::kPushDerives && sizeof(T) == sizeof(accumulate_t<T>);

// Warps of a block: as many as the registers a thread needs allow, 64 for 32 warps.
template <class L, class T>
constexpr int kFusedWarps = sizeof(T) == 8 && L::kHeavy      ? 8
                            : sizeof(T) == 8 || L::kHasScale ? 16
                                                             : 32;
// With a mask a thread needs more.
template <class L, class T, bool kMask>
constexpr int kMostWarps = !kMask           ? kFusedWarps<L, T>
                           : sizeof(T) == 8 ? 8
                                            : 16;

template <class L, class T, ScaleKind kScale, bool kVector, bool kMask>
__global__ void __launch_bounds__(kMostWarps<L, T, kMask>* kWarp, 1)
    iwae_kernel(const Iwae p, const FusedLayout l) {
  using A = accumulate_t<T>;
  using C = ColumnsOf<T, kVector, kWarp>;
  using Held = typename C::template Held<T>;
  constexpr bool kDerivative = kHoldDerivative<L, T>;
  constexpr bool kFull = kScale == ScaleKind::kFull;
  constexpr int V = C::V, kAhead = 2;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const A multiplier = static_cast<A>(p.multiplier);
  A constant{};
  if constexpr (!kMask) constant = density_constant<L, A, false>(p, kScale);
  const int64_t items = p.samples * l.segments;
  A* density = shared_at<A>(l.density_at);
  // Row k: params or derivatives, then the scales.
  const auto held = [&](int64_t k) { return shared_at<T>(k * l.row_bytes); };

  for (int64_t n = blockIdx.x; n < p.rows; n += gridDim.x) {
    const Example<T> example = example_of<T, kMask>(p, n);
    if constexpr (kMask) constant = density_constant<L, A, true>(p, kScale, n);
    for (int64_t item = warp; item < items; item += l.warps) {
      const int64_t k = item / l.segments, first = item % l.segments * l.segment;
      const int64_t end = minimum(first + l.segment, p.size);
      const int64_t row = (n * p.samples + k) * p.size;
      const T* params[1] = {at<T>(p.params, row)};
      const T* scales[1] = {kFull ? at<T>(p.scale, row) : nullptr};
      A total[1] = {};
      const auto keep = [&](int64_t base, const Held& raw, const Held& full,
                            const auto& derivative) {
        if constexpr (kDerivative) {
          C::store(held(k), base, end, derivative);
        } else {
          C::store(held(k), base, end, raw);
          if constexpr (kFull) C::store(held(k) + p.size, base, end, full);
        }
      };
      add_density<L, T, kScale, false, C, 1, kAhead, kDerivative, kMask>(
          example, params, scales, first + C::first(lane), end, total, keep);
      const A sum = team_sum(total[0], kWarp);
      if (lane == 0) {
        density[item] = first > 0 ? sum : ratio_of<A>(p, n * p.samples + k) + (sum + constant);
      }
    }
    __syncthreads();

    // Every warp comes to the same bound by itself.
    const auto log_weight = [&](int64_t k) {
      A sum = density[k * l.segments];
      for (int s = 1; s < l.segments; ++s) sum = sum + density[k * l.segments + s];
      return sum;
    };
    const MaxSum<A> s = max_and_sum<WarpTeam, A>(p.samples, log_weight);
    const A inverse = inverse_of(s);
    if (threadIdx.x == 0) *at<A>(p.bound, n) = bound_of(s, p.samples);

    for (int64_t item = warp; item < items; item += l.warps) {
      const int64_t k = item / l.segments, first = item % l.segments * l.segment;
      const int64_t end = minimum(first + l.segment, p.size);
      const int64_t row = (n * p.samples + k) * p.size;
      const A normalised = shifted_exp(log_weight(k), s.max) * inverse;
      if (lane == 0 && first == 0) *at<A>(p.log_w, n * p.samples + k) = normalised;
      const A weight = normalised * multiplier;
      for (int64_t base = first + C::first(lane); base < end; base += C::kStep) {
        Held out;
        if constexpr (kDerivative) {
          out = C::load(static_cast<const T*>(held(k)), base, end);
          DVAE_UNROLL
          for (int i = 0; i < V; ++i) out.v[i] = weight * out.v[i];
          if constexpr (kMask) {  // 0 of a weight that is NaN, too
            const auto seen = C::load(example.seen, base, end);
            DVAE_UNROLL
            for (int i = 0; i < V; ++i) out.v[i] = seen.get(i) != 0 ? out.v[i] : A(0);
          }
        } else {
          const SharedElements<T, kScale, false, C, kMask> shared(example, base, end);
          const Held raw = C::load(static_cast<const T*>(held(k)), base, end);
          Held full{}, out_scale;
          if constexpr (kFull) full = C::load(static_cast<const T*>(held(k) + p.size), base, end);
          DVAE_UNROLL
          for (int i = 0; i < V; ++i) {
            if (!C::has(base, i, end)) continue;
            const A scale = L::kHasScale ? shared.scale_of(full.get(i), i) : A(1);
            A d_scale = 0;
            A d = weighted_derivative<L, T, kScale>(weight, load(raw.get(i)), scale,
                                                    shared.x.get(i), d_scale);
            if (!shared.counts(i)) d = d_scale = A(0);
            set(out, i, d);
            if constexpr (kFull) set(out_scale, i, d_scale);
          }
          if constexpr (kFull) C::store(at<T>(p.grad_scale, row), base, end, out_scale);
        }
        C::store(at<T>(p.grad_params, row), base, end, out);
      }
    }
    __syncthreads();  // before the next example's log-densities
  }
}

// The layout for a block of this device; shared_bytes is too large for it if an example does not
// fit. Rows are cut into segments for `usual_warps`, with a mask or without, which gives the same
// bits.
template <class T, ScaleKind kScale>
FusedLayout fused_layout(const Iwae& p, const Device& device, int64_t step, int usual_warps,
                         int most_warps) {
  using A = accumulate_t<T>;
  FusedLayout l{};
  const int64_t steps = std::max<int64_t>(divide_up(p.size, step), 1);
  l.row_bytes = p.size * static_cast<int64_t>(sizeof(T)) * (kScale == ScaleKind::kFull ? 2 : 1);
  l.density_at = divide_up(p.samples * l.row_bytes, 16) * 16;
  // Where several blocks fit in a multiprocessor's shared memory they share its registers too, so
  // that one loads while another computes.
  const int64_t block_bytes = l.density_at + device.shared_reserved + 1024;
  const int64_t blocks = std::clamp<int64_t>(device.shared_total / block_bytes, 1, 4);
  const int64_t usual = usual_warps / blocks, most = most_warps / blocks;
  // Few samples: several warps a row, each with at least two steps.
  const int64_t samples = std::max<int64_t>(p.samples, 1);
  l.segments = static_cast<int>(std::clamp<int64_t>(usual / samples, 1, divide_up(steps, 2)));
  l.segment = divide_up(steps, l.segments) * step;
  const int64_t items = std::max<int64_t>(p.samples * l.segments, 1);
  l.shared_bytes = l.density_at + items * static_cast<int64_t>(sizeof(A));
  // As few rounds as the most warps need, and no more warps than those rounds.
  l.warps = static_cast<int>(divide_up(items, divide_up(items, most)));
  return l;
}

template <class L, class T, ScaleKind kScale, bool kMask>
cudaError_t launch_fused(const Iwae& p, const Device& device, bool& fits, cudaStream_t stream) {
  const auto bases = {p.params,
                      p.x,
                      scale_rows<kScale>(p),
                      static_cast<const void*>(p.mask.seen),
                      static_cast<const void*>(p.grad_params),
                      static_cast<const void*>(p.grad_scale)};
  const bool vector = packs_fit<T>(p.size, kPack<T>, bases);
  const int64_t step =
      vector ? ColumnsOf<T, true, kWarp>::kStep : ColumnsOf<T, false, kWarp>::kStep;
  const FusedLayout l =
      fused_layout<T, kScale>(p, device, step, kFusedWarps<L, T>, kMostWarps<L, T, kMask>);
  fits = l.shared_bytes <= device.shared_bytes;
  if (!fits) return cudaSuccess;
  const auto run = [&](auto kernel) {
    return launch(kernel, grid_of(blocks_for(device, p.rows, 1)), l.warps * kWarp, l.shared_bytes,
                  stream, p, l);
  };
  return vector ? run(&iwae_kernel<L, T, kScale, true, kMask>)
                : run(&iwae_kernel<L, T, kScale, false, kMask>);
}

template <class L, bool kMask>
cudaError_t iwae_of(DType dtype, const Iwae& p, bool& fits, cudaStream_t stream) {
  constexpr ScaleKind kScale = L::kHasScale ? ScaleKind::kFull : ScaleKind::kNone;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch_fused<L, T, kScale, kMask>(p, device, fits, stream);
  });
}

template <class L>
cudaError_t IwaeOf<L>::launch(DType dtype, const Iwae& p, bool& fits, cudaStream_t stream) {
  return iwae_of<L, false>(dtype, p, fits, stream);
}

template <class L>
cudaError_t MaskedIwaeOf<L>::launch(DType dtype, const Iwae& p, bool& fits, cudaStream_t stream) {
  return iwae_of<L, true>(dtype, p, fits, stream);
}

}  // namespace dvae::cuda
