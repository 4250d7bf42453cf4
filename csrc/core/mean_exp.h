// log(1/K Σ e^v) of one row, and its normalised weights, given the row's maximum.
#pragma once

#include "logsumexp.h"
#include "math.h"

DVAE_BEGIN_CORE

// max of the elements, NaN left out, and Σ sum_term(v, max). Of no elements: (−inf, 0).
template <class A>
struct MaxSum {
  A max, sum;
};

// What elements are reduced by: where all are −inf, e^(−inf − 0) = 0 instead of NaN.
template <class A>
DVAE_HD A anchor_of(A max) {
  return max == -infinity<A>() ? A(0) : max;
}

template <class A>
DVAE_HD A shifted_exp(A v, A max) {
  return exp_nonpositive(v - anchor_of(max));
}

// An element's part of the sum. Where the maximum is +inf, inf − inf would make the sum NaN,
// which it is only if an element is.
template <class A>
DVAE_HD A sum_term(A v, A max) {
  const A special = v < infinity<A>() ? A(0) : v;
  return max == infinity<A>() ? special : shifted_exp(v, max);
}

// −inf only if every weight is 0 (a NaN makes the sum NaN, which is not 0).
template <class A>
DVAE_HD A bound_of(MaxSum<A> s, int64_t samples) {
  if (s.sum == A(0)) return -infinity<A>();
  return s.max + log(s.sum / static_cast<A>(samples));
}

// Times shifted_exp(v, max): the normalised weight w̃ of v, 0 where every weight is.
template <class A>
DVAE_HD A inverse_of(MaxSum<A> s) {
  return s.sum == A(0) ? A(0) : A(1) / s.sum;
}

// Adds an element to statistics whose maximum, over all elements, is known (NaN if one is).
DVAE_HD void add_below_maximum(LogSumExp& s, double log_w) {
  const double e = ::exp(log_w - LogSumExp::anchor(s.max));
  s.s1 += e;
  s.s2 += e * e;
  s.sum += log_w;
  s.count += 1;
}

DVAE_END_CORE
