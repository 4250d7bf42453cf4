// Gradients of mixture_log_ratio: of z, a sum over components, and of mean and log_var, over
// samples.
//
// Bytes an element of z: 2 · sizeof(T) from memory for z and its gradient; the second kernel reads
// z once more for each component, mostly from cache. Registers (sm_90a, float32): 128 and 64.
#include "latent_gradient.cuh"
#include "mixture.cuh"

namespace dvae::cuda {
namespace {

// g w_m of row r (example, sample).
template <class A>
DVAE_DEVICE A component_gradient(const MixtureParams& p, int64_t row, int64_t m) {
  return *at<A>(p.grad, row) * *at<A>(static_cast<const void*>(p.weights), row * p.components + m);
}

// What a thread sums over components for each sample: the gradients of a unit's z, and the weights.
constexpr int kSums = kGroups + 1;
// Components that it adds up before they go to shared memory, where there are more: one float that
// takes in thousands loses as much of each.
constexpr int kComponentFlush = 64;

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    mixture_grad_z_kernel(const MixtureParams p, const MixtureLayout l) {
  using A = accumulate_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % l.team;
  const int64_t units = LatentUnit::per_row(p.size);
  const int64_t teams = item_stride() / l.team;
  const bool many = p.components > kComponentFlush;
  for (int64_t i = first_item() / l.team; i < l.items; i += teams) {
    const MixtureItem item(p, l, i);
    for (int64_t u = lane; u < units; u += l.team) {
      const LatentUnit unit(u);
      A sum[kChunk][kSums] = {};
      const auto held = [](int c, int g) -> A& {
        return shared_at<A>()[(c * kSums + g) * kThreads + threadIdx.x];
      };
      if (many) {
        DVAE_UNROLL
        for (int c = 0; c < kChunk; ++c) {
          DVAE_UNROLL
          for (int g = 0; g < kSums; ++g) held(c, g) = A(0);
        }
      }
      for (int64_t m = 0; m < p.components; ++m) {
        LatentElements<T> e;
        e.read(p, m * p.examples + item.example, unit, kInverseStd<A>);
        DVAE_UNROLL
        for (int c = 0; c < kChunk; ++c) {
          const int64_t row = item.row(c);
          const A weight = component_gradient<A>(p, row, m);
          // A weight of 0 stops a non-finite derivative: 0 · inf would be NaN.
          if (weight == A(0)) continue;
          sum[c][kGroups] = sum[c][kGroups] + weight;
          DVAE_UNROLL
          for (int g = 0; g < kGroups; ++g) {
            const int64_t j = unit.element(g);
            if (j >= p.size) continue;
            A noise = 0, squares = 0;
            sum[c][g] = sum[c][g] + DiagonalNormal::accumulate_component(
                                        weight, load(*at<T>(p.z, row * p.size + j)), e.mean[g],
                                        e.factor[g], noise, squares);
          }
        }
        if (many && (m % kComponentFlush == kComponentFlush - 1 || m == p.components - 1)) {
          DVAE_UNROLL
          for (int c = 0; c < kChunk; ++c) {
            DVAE_UNROLL
            for (int g = 0; g < kSums; ++g) {
              held(c, g) = held(c, g) + sum[c][g];
              sum[c][g] = m == p.components - 1 ? held(c, g) : A(0);
            }
          }
        }
      }
      DVAE_UNROLL
      for (int c = 0; c < kChunk; ++c) {
        if (c >= item.count) continue;
        DVAE_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          const int64_t j = unit.element(g);
          if (j >= p.size) continue;
          const int64_t to = item.row(c) * p.size + j;
          store(*at<T>(p.grad_z, to), sum[c][g] - load(*at<T>(p.z, to)) * sum[c][kGroups]);
        }
      }
    }
  }
}

// A row is (component, example).
template <class T>
struct ComponentRow {
  using A = accumulate_t<T>;
  static constexpr A kPower = kInverseStd<A>;
  int64_t component, example;

  DVAE_DEVICE ComponentRow(const MixtureParams& p, int64_t row) {
    const Quotient at_row = divide(row, p.examples);
    component = at_row.quotient;
    example = at_row.remainder;
  }

  DVAE_DEVICE void add(const MixtureParams& p, const LatentUnit& unit, const LatentElements<T>& e,
                       int64_t k, LatentGradient<A>& sum) const {
    const int64_t r = example * p.samples + k;
    const A weight = component_gradient<A>(p, r, component);
    if (weight == A(0)) return;
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t j = unit.element(g);
      if (j >= p.size) continue;
      A noise = 0, squares = 0;
      DiagonalNormal::accumulate_component(weight, load(*at<T>(p.z, r * p.size + j)), e.mean[g],
                                           e.factor[g], noise, squares);
      sum.mean[g] = sum.mean[g] + DiagonalNormal::component_mean_gradient(noise, e.factor[g]);
      sum.log_var[g] = sum.log_var[g] + DiagonalNormal::component_log_var_gradient(weight, squares);
    }
  }
};

cudaError_t grad_z(DType dtype, const MixtureParams& p, cudaStream_t stream) {
  if (p.examples == 0 || p.samples == 0 || p.size == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  const MixtureLayout l = mixture_layout(p);
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t shared =
        p.components > kComponentFlush ? kChunk * kSums * kThreads * sizeof(accumulate_t<T>) : 0;
    return launch(&mixture_grad_z_kernel<T>,
                  grid_of(blocks_for(device, l.items * l.team, kThreads)), kThreads, shared, stream,
                  p, l);
  });
}

}  // namespace

cudaError_t mixture_log_ratio_backward(DType dtype, const MixtureParams& p, cudaStream_t stream) {
  if (const cudaError_t error = grad_z(dtype, p, stream)) return error;
  return run_latent_backward<ComponentRow>(dtype, p, p.components * p.examples, stream);
}

}  // namespace dvae::cuda
