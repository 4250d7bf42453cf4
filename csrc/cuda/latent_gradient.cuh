// Gradients of mean and log_var: sums over the samples of each row (copy or component, example).
#pragma once

#include "latent.cuh"

namespace dvae::cuda {

// A block's threads: `items` units of rows, `slices` of the samples k = slice, + slices, …
struct LatentBackwardLayout {
  int items, slices;
  int64_t units;  // rows · units a row
};

// What a thread sums over its samples.
template <class A>
struct LatentGradient {
  A mean[kGroups] = {}, log_var[kGroups] = {};

  // Adds itself to the calling thread's place in shared memory, and starts again.
  DVAE_DEVICE void move_to(A* shared) {
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      A& to_mean = shared[g * kThreads + threadIdx.x];
      A& to_log_var = shared[(kGroups + g) * kThreads + threadIdx.x];
      to_mean = to_mean + mean[g];
      to_log_var = to_log_var + log_var[g];
    }
    *this = {};
  }
};

// Samples that a thread adds up before they go to shared memory: one float that takes in thousands
// loses as much of each.
constexpr int kLatentFlush = 32;

// Source: made of the parameters and a row; add(p, unit, elements, k, sum) adds one sample's part.
template <class T, class P, class Source>
__global__ void __launch_bounds__(kThreads, 1)
    latent_backward_kernel(const P p, const LatentBackwardLayout l) {
  using A = accumulate_t<T>;
  const int64_t per_row = LatentUnit::per_row(p.size);
  const int item = static_cast<int>(threadIdx.x) % l.items;
  const int slice = static_cast<int>(threadIdx.x) / l.items;
  const int summed = l.slices > 1 ? l.slices : 0;  // in shared memory
  A* shared = shared_at<A>();
  for (int64_t first = int64_t{blockIdx.x} * l.items; first < l.units;
       first += int64_t{gridDim.x} * l.items) {
    const bool own = first + item < l.units;
    const Quotient at_unit = divide(own ? first + item : 0, per_row);
    const int64_t row = at_unit.quotient;
    const LatentUnit unit(at_unit.remainder);
    const Source source(p, row);
    LatentElements<T> e;
    e.read(p, row, unit, Source::kPower);
    if (summed > 0) {
      __syncthreads();  // the last round's sums have been read
      DVAE_UNROLL
      for (int i = 0; i < 2 * kGroups; ++i) shared[i * kThreads + threadIdx.x] = A(0);
    }
    LatentGradient<A> sum;
    for (int64_t k = own ? slice : p.samples; k < p.samples;) {
      const int64_t stop = minimum(p.samples, k + kLatentFlush * l.slices);
      for (; k < stop; k += l.slices) source.add(p, unit, e, k, sum);
      if (summed > 0) sum.move_to(shared);
    }
    if (summed > 0) __syncthreads();
    if (slice != 0 || !own) continue;
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t j = unit.element(g);
      if (j >= p.size) continue;
      A mean = sum.mean[g], log_var = sum.log_var[g];  // 0 where they have been moved
      for (int s = 0; s < summed; ++s) {
        mean = mean + shared[g * kThreads + s * l.items + item];
        log_var = log_var + shared[(kGroups + g) * kThreads + s * l.items + item];
      }
      store(*at<T>(p.grad_mean, row * p.size + j), mean);
      store(*at<T>(p.grad_log_var, row * p.size + j), log_var);
    }
  }
}

template <template <class> class Source, class P>
cudaError_t run_latent_backward(DType dtype, const P& p, int64_t rows, cudaStream_t stream) {
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
    return launch(&latent_backward_kernel<T, P, Source<T>>,
                  grid_of(blocks_for(device, l.units, l.items)), kThreads, shared, stream, p, l);
  });
}

}  // namespace dvae::cuda
