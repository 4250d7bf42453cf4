// logmeanexp, its gradient, and the fused loss's normalised weights, for rows (N, K).
//
// Bytes an element: one read of log_w (rows beyond a few thousand are read again from the cache),
// and for weights and gradient one write. Registers (sm_90a, float32): 48.
#include "launch.cuh"
#include "row_bound.cuh"

namespace dvae::cuda {
namespace {

// What a row's maximum and sum are for.
enum class Make { kBound, kBoundAndWeights, kGradient };

// A team a row: the bound, the normalised weights w̃, or the gradient g w̃ (never from the bound,
// which is rounded to its own size). weights may be log_w.
template <class A, class Team, Make kMake>
__global__ void __launch_bounds__(kThreads, 1)
    row_kernel(const A* log_w, const A* grad, A* weights, A* bounds, int64_t rows,
               int64_t samples) {
  constexpr int kTeams = kThreads / Team::kSize;
  const int team = static_cast<int>(threadIdx.x) / Team::kSize;
  for (int64_t n = int64_t{blockIdx.x} * kTeams + team; n < rows;
       n += int64_t{gridDim.x} * kTeams) {
    const A* v = log_w + n * samples;
    const MaxSum<A> s = max_and_sum<Team, A>(samples, [&](int64_t k) { return v[k]; });
    if constexpr (kMake != Make::kGradient) {
      if (Team::rank() == 0) bounds[n] = bound_of(s, samples);
    }
    if constexpr (kMake != Make::kBound) {
      const A g = kMake == Make::kGradient ? grad[n] : A(1);
      const A factor = g * inverse_of(s);
      for (int64_t k = Team::rank(); k < samples; k += Team::kSize) {
        weights[n * samples + k] = g == A(0) ? A(0) : factor * shifted_exp(v[k], s.max);
      }
    }
  }
}

template <Make kMake>
cudaError_t run(DType dtype, const void* log_w, const void* grad, void* weights, void* bounds,
                int64_t rows, int64_t samples, cudaStream_t stream) {
  return by_row(dtype, rows, samples > 1024, [&](auto type, auto team, dim3 grid, int64_t shared) {
    using A = typename decltype(type)::type;
    return launch(&row_kernel<A, decltype(team), kMake>, grid, kThreads, shared, stream,
                  static_cast<const A*>(log_w), static_cast<const A*>(grad),
                  static_cast<A*>(weights), static_cast<A*>(bounds), rows, samples);
  });
}

}  // namespace

cudaError_t logmeanexp(DType dtype, const LogMeanExpParams& p, cudaStream_t stream) {
  return run<Make::kBound>(dtype, p.log_w, nullptr, nullptr, p.bound, p.rows, p.samples, stream);
}

cudaError_t iwae_normalise(DType dtype, const IwaeParams& p, cudaStream_t stream) {
  return run<Make::kBoundAndWeights>(dtype, p.log_w, nullptr, p.log_w, p.bound, p.rows, p.samples,
                                     stream);
}

cudaError_t logmeanexp_backward(DType dtype, const LogMeanExpParams& p, cudaStream_t stream) {
  return run<Make::kGradient>(dtype, p.log_w, p.grad, p.grad_log_w, nullptr, p.rows, p.samples,
                              stream);
}

}  // namespace dvae::cuda
