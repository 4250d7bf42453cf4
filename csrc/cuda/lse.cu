// Streaming statistics of log-weights (core/logsumexp.h), state (N, 5) in float64.
//
// Bound by float64 arithmetic, about 40 operations a log-weight; the row is read twice, the second
// time from the cache. Registers (sm_90a): 62.
#include "launch.cuh"
#include "row_bound.cuh"

namespace dvae::cuda {
namespace {

template <class A, class Team>
__global__ void __launch_bounds__(kThreads, 1)
    lse_update_kernel(const double* state, const A* log_w, int64_t rows, int64_t samples,
                      double* out) {
  constexpr int kTeams = kThreads / Team::kSize;
  const int team = static_cast<int>(threadIdx.x) / Team::kSize;
  for (int64_t n = int64_t{blockIdx.x} * kTeams + team; n < rows;
       n += int64_t{gridDim.x} * kTeams) {
    const A* v = log_w + n * samples;
    double top = -infinity<double>(), nan = 0;
    for (int64_t k = Team::rank(); k < samples; k += Team::kSize) {
      const double w = static_cast<double>(v[k]);
      top = w > top ? w : top;
      nan = w != w ? w : nan;
    }
    top = Team::max(top);
    nan = Team::sum(nan);  // 0, or NaN if an element is
    LogSumExp chunk;
    chunk.max = nan != nan ? nan : top;
    for (int64_t k = Team::rank(); k < samples; k += Team::kSize) {
      add_below_maximum(chunk, static_cast<double>(v[k]));
    }
    chunk.s1 = Team::sum(chunk.s1);
    chunk.s2 = Team::sum(chunk.s2);
    chunk.sum = Team::sum(chunk.sum);
    chunk.count = static_cast<double>(samples);
    if (Team::rank() != 0) continue;
    LogSumExp s = LogSumExp::read(state + n * LogSumExp::kSize);
    if (samples > 0) s.merge(chunk);
    s.write(out + n * LogSumExp::kSize);
  }
}

}  // namespace

cudaError_t lse_update(DType dtype, const double* state, const void* log_w, int64_t rows,
                       int64_t samples, double* out, cudaStream_t stream) {
  // float64 exponentials: a block a row pays earlier than for logmeanexp.
  return by_row(dtype, rows, samples > 256, [&](auto type, auto team, dim3 grid, int64_t shared) {
    using A = typename decltype(type)::type;
    return launch(&lse_update_kernel<A, decltype(team)>, grid, kThreads, shared, stream, state,
                  static_cast<const A*>(log_w), rows, samples, out);
  });
}

}  // namespace dvae::cuda
