// Rows by a team of threads each, and log-mean-exp of one.
#pragma once

#include "../core/mean_exp.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace dvae::cuda {

// value(k) of k in [0, n).
template <class Team, class A, class Value>
DVAE_DEVICE MaxSum<A> max_and_sum(int64_t n, const Value& value) {
  MaxSum<A> s{-infinity<A>(), A(0)};
  for (int64_t k = Team::rank(); k < n; k += Team::kSize) {
    const A v = value(k);
    s.max = v > s.max ? v : s.max;
  }
  s.max = Team::max(s.max);
  for (int64_t k = Team::rank(); k < n; k += Team::kSize) {
    s.sum = s.sum + sum_term(value(k), s.max);
  }
  s.sum = Team::sum(s.sum);
  return s;
}

// Launches a kernel of a team a row, a block where rows are long, else a warp:
// f(Type<accumulation type>, team, grid, shared bytes).
template <class F>
cudaError_t by_row(DType dtype, int64_t rows, bool are_long, const F& f) {
  if (rows == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_dtype(dtype, [&](auto type) {
    const Type<accumulate_t<typename decltype(type)::type>> sums;
    if (are_long) {
      using Team = BlockTeam<kThreads>;
      return f(sums, Team(), grid_of(blocks_for(device, rows, 1)), int64_t{Team::kBytes});
    }
    return f(sums, WarpTeam(), grid_of(blocks_for(device, rows, kThreads / kWarp)), int64_t{0});
  });
}

}  // namespace dvae::cuda
