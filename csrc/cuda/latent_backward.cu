// Gradients of sample_latent and latent_log_ratio.
//
// Bytes an element of z: sizeof(T) of grad_z (sampled; the noise is made again), 2 · sizeof(T) of z
// and its gradient (given), and 4/K · sizeof(T) for the row's own tensors.
// Registers (sm_90a, float32): 63.
#include "latent.cuh"

namespace dvae::cuda {
namespace {

// A block's threads: `items` units of rows, `slices` of the samples k = slice, + slices, …
struct LatentBackwardLayout {
  int items, slices;
  int64_t units;  // rows · units a row
};

// What a thread sums over its samples.
template <class A>
struct LatentGradient {
  A mean[kGroups] = {}, log_var[kGroups] = {};
};

template <class T, bool kSampled>
DVAE_DEVICE void add_sample(const Latent& p, const LatentUnit& unit, const LatentElements<T>& e,
                            const LatentNoise& noise, int64_t row, int64_t k,
                            LatentGradient<accumulate_t<T>>& sum) {
  using A = accumulate_t<T>;
  const int64_t r = row * p.samples + k;
  const A grad_r = p.grad_log_ratio != nullptr ? *at<A>(p.grad_log_ratio, r) : A(0);
  [[maybe_unused]] A n[kGroups][1];
  if constexpr (kSampled) noise.normals(unit, k, p.size, n);
  DVAE_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const int64_t j = unit.element(g);
    if (j >= p.size) continue;
    if constexpr (kSampled) {
      const A grad_z = p.grad_z != nullptr ? load(*at<T>(p.grad_z, r * p.size + j)) : A(0);
      const A scaled = e.factor[g] * n[g][0];
      DiagonalNormal::accumulate_gradient(grad_z, grad_r, e.mean[g] + scaled, scaled, sum.mean[g],
                                          sum.log_var[g]);
    } else {
      const A z = load(*at<T>(static_cast<const void*>(p.z), r * p.size + j));
      store(*at<T>(p.grad_z_out, r * p.size + j),
            DiagonalNormal::log_ratio_at_gradient(grad_r, z, e.mean[g], e.factor[g], sum.mean[g],
                                                  sum.log_var[g]));
    }
  }
}

template <class T, bool kSampled>
__global__ void __launch_bounds__(kThreads, 1)
    latent_backward_kernel(const Latent p, const LatentBackwardLayout l) {
  using A = accumulate_t<T>;
  const int64_t per_row = LatentUnit::per_row(p.size);
  const int item = static_cast<int>(threadIdx.x) % l.items;
  const int slice = static_cast<int>(threadIdx.x) / l.items;
  A* shared = shared_at<A>();
  for (int64_t first = int64_t{blockIdx.x} * l.items; first < l.units;
       first += int64_t{gridDim.x} * l.items) {
    const bool own = first + item < l.units;
    const Quotient at_unit = divide(own ? first + item : 0, per_row);
    const int64_t row = at_unit.quotient;
    const LatentUnit unit(at_unit.remainder);
    LatentNoise noise{};
    if constexpr (kSampled) noise = latent_noise(p, row);
    LatentElements<T> e;
    e.read(p, row, unit, kLatentPower<A, kSampled>);
    LatentGradient<A> sum;
    for (int64_t k = own ? slice : p.samples; k < p.samples; k += l.slices) {
      add_sample<T, kSampled>(p, unit, e, noise, row, k, sum);
    }
    if (l.slices > 1) {
      __syncthreads();  // the last round's sums have been read
      DVAE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        shared[g * kThreads + threadIdx.x] = sum.mean[g];
        shared[(kGroups + g) * kThreads + threadIdx.x] = sum.log_var[g];
      }
      __syncthreads();
    }
    if (slice != 0 || !own) continue;
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t j = unit.element(g);
      if (j >= p.size) continue;
      A mean = sum.mean[g], log_var = sum.log_var[g];
      for (int s = 1; s < l.slices; ++s) {
        mean = mean + shared[g * kThreads + s * l.items + item];
        log_var = log_var + shared[(kGroups + g) * kThreads + s * l.items + item];
      }
      store(*at<T>(p.grad_mean, row * p.size + j), mean);
      store(*at<T>(p.grad_log_var, row * p.size + j), log_var);
    }
  }
}

template <bool kSampled>
cudaError_t run(DType dtype, const Latent& p, cudaStream_t stream) {
  const int64_t rows = p.copies * p.examples;
  if (rows == 0 || p.size == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  LatentBackwardLayout l{};
  l.slices = 1;
  while (l.slices < kThreads / kLanes && 2 * l.slices <= p.samples) l.slices *= 2;
  l.items = kThreads / l.slices;
  l.units = rows * divide_up(p.size, kBlock) * kLanes;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t shared = l.slices > 1 ? 2 * kGroups * kThreads * sizeof(accumulate_t<T>) : 0;
    return launch(&latent_backward_kernel<T, kSampled>,
                  grid_of(blocks_for(device, l.units, l.items)), kThreads, shared, stream, p, l);
  });
}

}  // namespace

cudaError_t sample_latent_backward(DType dtype, const Latent& p, cudaStream_t stream) {
  return run<true>(dtype, p, stream);
}

cudaError_t latent_log_ratio_backward(DType dtype, const Latent& p, cudaStream_t stream) {
  return run<false>(dtype, p, stream);
}

}  // namespace dvae::cuda
