// log-mean-exp of a row, by a team of threads.
#pragma once

#include "../core/mean_exp.h"
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

}  // namespace dvae::cuda
