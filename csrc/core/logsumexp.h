// Streaming statistics of log-weights: what a bound, its error and its ESS need, in any order.
#pragma once

#include "math.h"

DVAE_BEGIN_CORE

// m = max log w, s1 = Σ e^(log w − m), s2 = Σ e^(2 (log w − m)), sum = Σ log w, count.
struct LogSumExp {
  double max, s1, s2, sum, count;

  // Written out: one that the compiler makes has no target but the baseline in clang.
  DVAE_HD LogSumExp() : max(-infinity<double>()), s1(0), s2(0), sum(0), count(0) {}

  // Where no weight is above 0 yet, scale by e^0: −inf − (−inf) would be NaN.
  DVAE_HD static double anchor(double m) { return m == -infinity<double>() ? 0.0 : m; }

  DVAE_HD void push(double log_w) {
    // NaN stays: it makes every later sum NaN, as it should for its example.
    LogSumExp one;
    one.max = log_w;
    one.s1 = ::exp(log_w - anchor(log_w));
    one.s2 = one.s1;
    one.sum = log_w;
    one.count = 1;
    merge(one);
  }

  DVAE_HD void merge(const LogSumExp& other) {
    const bool first = max >= other.max || max != max;
    const double m = first ? max : other.max;
    const double f1 = ::exp(max - anchor(m)), f2 = ::exp(other.max - anchor(m));
    s1 = s1 * f1 + other.s1 * f2;
    s2 = s2 * f1 * f1 + other.s2 * f2 * f2;
    sum = sum + other.sum;
    count = count + other.count;
    max = m;
  }

  // As the operators keep it: kSize numbers.
  static constexpr int64_t kSize = 5;
  DVAE_HD static LogSumExp read(const double* v) {
    LogSumExp s;
    s.max = v[0], s.s1 = v[1], s.s2 = v[2], s.sum = v[3], s.count = v[4];
    return s;
  }
  DVAE_HD void write(double* v) const {
    v[0] = max, v[1] = s1, v[2] = s2, v[3] = sum, v[4] = count;
  }
};

DVAE_END_CORE
