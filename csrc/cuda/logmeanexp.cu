// logmeanexp, its gradient, and the fused loss's normalised weights, for rows (N, K).
//
// Bytes an element: one read of log_w (rows beyond a few thousand are read again from the cache),
// and for weights and gradient one write.
#include "launch.cuh"
#include "row_bound.cuh"

namespace dvae::cuda {
namespace {

// A team a row: bound, and with kWeights the normalised weights in place of log_w.
template <class A, class Team, bool kWeights>
__global__ void __launch_bounds__(kThreads, 1)
    bound_kernel(const A* log_w, A* weights, A* bounds, int64_t rows, int64_t samples) {
  constexpr int kTeams = kThreads / Team::kSize;
  const int team = static_cast<int>(threadIdx.x) / Team::kSize;
  for (int64_t n = int64_t{blockIdx.x} * kTeams + team; n < rows;
       n += int64_t{gridDim.x} * kTeams) {
    const A* v = log_w + n * samples;
    const MaxSum<A> s = max_and_sum<Team, A>(samples, [&](int64_t k) { return v[k]; });
    if (Team::rank() == 0) bounds[n] = bound_of(s, samples);
    if constexpr (kWeights) {
      const A inverse = inverse_of(s);
      for (int64_t k = Team::rank(); k < samples; k += Team::kSize) {
        weights[n * samples + k] = shifted_exp(v[k], s.max) * inverse;
      }
    }
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads, 1)
    logmeanexp_backward_kernel(const LogMeanExpParams p) {
  const int64_t items = p.rows * p.samples;
  for (int64_t i = first_item(); i < items; i += item_stride()) {
    const int64_t n = divide(i, p.samples).quotient;
    const A factor = *at<A>(p.grad, n) / static_cast<A>(p.samples);
    const A bound = *at<A>(static_cast<const void*>(p.bound), n);
    *at<A>(p.grad_log_w, i) = bound_gradient(factor, *at<A>(p.log_w, i), bound);
  }
}

template <bool kWeights>
cudaError_t run(DType dtype, const void* log_w, void* weights, void* bounds, int64_t rows,
                int64_t samples, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_dtype(dtype, [&](auto type) {
    using A = accumulate_t<typename decltype(type)::type>;
    const auto with = [&](auto team) {
      using Team = decltype(team);
      const int64_t shared = Team::kSize > kWarp ? BlockTeam<kThreads>::kBytes : 0;
      return launch(&bound_kernel<A, Team, kWeights>,
                    grid_of(blocks_for(device, rows, kThreads / Team::kSize)), kThreads, shared,
                    stream, static_cast<const A*>(log_w), static_cast<A*>(weights),
                    static_cast<A*>(bounds), rows, samples);
    };
    return samples > 1024 ? with(BlockTeam<kThreads>()) : with(WarpTeam());
  });
}

}  // namespace

cudaError_t logmeanexp(DType dtype, const LogMeanExpParams& p, cudaStream_t stream) {
  return run<false>(dtype, p.log_w, nullptr, p.bound, p.rows, p.samples, stream);
}

cudaError_t iwae_normalise(DType dtype, const LogWeights& p, cudaStream_t stream) {
  return run<true>(dtype, p.log_w, p.log_w, p.bound, p.rows, p.samples, stream);
}

cudaError_t logmeanexp_backward(DType dtype, const LogMeanExpParams& p, cudaStream_t stream) {
  if (p.rows == 0 || p.samples == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_dtype(dtype, [&](auto type) {
    using A = accumulate_t<typename decltype(type)::type>;
    return launch(&logmeanexp_backward_kernel<A>,
                  grid_of(blocks_for(device, p.rows * p.samples, kThreads)), kThreads, 0, stream,
                  p);
  });
}

}  // namespace dvae::cuda
