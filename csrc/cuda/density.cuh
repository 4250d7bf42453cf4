// log p(x|z) of rows of decoder outputs, and its derivatives, for a team of threads.
#pragma once

#include "../core/likelihoods.h"
#include "pack.cuh"
#include "params.h"

namespace dvae::cuda {

DVAE_DEVICE int64_t mask_row(const Mask& mask, int64_t n) {
  return divide(n, mask.examples).remainder;
}

// What all rows of an example share.
template <class T>
struct Example {
  using A = accumulate_t<T>;
  const A* x;
  const T* bias;
  const A* scale;
  int64_t scale_step;
  const uint8_t* seen;  // null without a mask
};

// Of row n, whose example is known.
template <class T, bool kMask, class P>
DVAE_DEVICE Example<T> example_at(const P& p, int64_t n, int64_t example) {
  using A = accumulate_t<T>;
  return {at<A>(p.x, example * p.size), static_cast<const T*>(p.bias),
          static_cast<const A*>(p.scale), p.scale_stride,
          kMask ? p.mask.seen + mask_row(p.mask, n) * p.size : nullptr};
}
template <class T, bool kMask, class P>
DVAE_DEVICE Example<T> example_of(const P& p, int64_t n) {
  return example_at<T, kMask>(p, n, divide(n, p.examples).remainder);
}

// What all rows share, at a thread's columns. With a mask a bias may be null: one kernel for both.
template <class T, ScaleKind kScale, bool kBias, class C, bool kMask>
struct SharedElements {
  using A = accumulate_t<T>;
  typename C::template Held<A> x, scale;
  typename C::template Held<T> bias;
  typename C::template Held<uint8_t> seen;

  DVAE_DEVICE SharedElements(const Example<T>& e, int64_t base, int64_t end)
      : x(C::load(e.x, base, end)) {
    if constexpr (kMask) seen = C::load(e.seen, base, end);
    if constexpr (kBias && kMask) {
      bias = {};
      if (e.bias != nullptr) bias = C::load(e.bias, base, end);
    } else if constexpr (kBias) {
      bias = C::load(e.bias, base, end);
    }
    if constexpr (kScale == ScaleKind::kShared) {
      if (e.scale_step != 0) {
        scale = C::load(e.scale, base, end);
      } else {
        DVAE_UNROLL
        for (int i = 0; i < C::V; ++i) scale.set(i, *e.scale);
      }
    }
  }
  DVAE_DEVICE bool counts(int i) const { return !kMask || seen.get(i) != 0; }
  DVAE_DEVICE A param(T raw, int i) const {
    return kBias ? load(raw) + load(bias.get(i)) : load(raw);
  }
  DVAE_DEVICE A scale_of(T full, int i) const {
    return kScale == ScaleKind::kFull ? load(full) : scale.get(i);
  }
};

// Whether logits are coarse enough for the shorter formulas.
template <class T>
constexpr bool kCoarse = sizeof(T) == 2;

// The thread's part of the log-densities of kRows rows of one example: over its columns in
// [first, end), the first of which is `first` itself. Loads kAhead steps before it uses them.
// keep(base, params, scales, derivatives) is called with each step of each row; derivatives (of
// Bernoulli's logits) are made only if kDerivative. What a mask leaves out adds nothing, whatever
// it is, and has a derivative of 0: each element is pushed, and the sums chosen, so that the
// elements of a warp's threads stay together, and with a mask of ones bits are those without.
//
// Each thread keeps up to four pairs of accumulators a row, so that a logarithm serves up to
// 4 · kMaxPush elements.
template <class L, class T, ScaleKind kScale, bool kBias, class C, int kRows, int kAhead,
          bool kDerivative, bool kMask, class Keep>
DVAE_DEVICE void add_density(const Example<T>& example, const T* const (&params)[kRows],
                             const T* const (&scales)[kRows], int64_t first, int64_t end,
                             accumulate_t<T> (&total)[kRows], const Keep& keep) {
  using A = accumulate_t<T>;
  using Held = typename C::template Held<T>;
  constexpr int V = C::V;
  constexpr int kSlots = V < 4 ? V : 4;
  constexpr bool kFull = kScale == ScaleKind::kFull;
  // Steps after which a slot has had kMaxPush elements, in whole rounds of kAhead.
  constexpr int64_t kSteps = L::kMaxPush / (V / kSlots) / kAhead * kAhead;
  static_assert(kSteps > 0, "a round must not exceed kMaxPush");

  for (int64_t base = first; base < end;) {
    A a[kRows][kSlots] = {}, b[kRows][kSlots] = {};
    [[maybe_unused]] A data = 0;  // what the rows have in common
    const int64_t stop = minimum(end, base + kSteps * C::kStep);
    for (; base < stop; base += kAhead * C::kStep) {
      Held raw[kAhead][kRows];
      Held full[kFull ? kAhead : 1][kFull ? kRows : 1];
      DVAE_UNROLL
      for (int u = 0; u < kAhead; ++u) {
        const int64_t from = base + u * C::kStep;
        if (u > 0 && from >= stop) break;
        DVAE_UNROLL
        for (int r = 0; r < kRows; ++r) {
          raw[u][r] = C::load(params[r], from, end);
          if constexpr (kFull) full[u][r] = C::load(scales[r], from, end);
        }
      }
      DVAE_UNROLL
      for (int u = 0; u < kAhead; ++u) {
        const int64_t from = base + u * C::kStep;
        if (u > 0 && from >= stop) break;
        const SharedElements<T, kScale, kBias, C, kMask> shared(example, from, end);
        if constexpr (L::kHasDataTerm) {
          A step = 0;  // by itself: `data` takes in as many steps as a slot takes elements
          DVAE_UNROLL
          for (int i = 0; i < V; ++i) {
            if (!C::has(from, i, end)) continue;
            const A scale = kScale == ScaleKind::kShared ? shared.scale.get(i) : A(1);
            const A term = L::template data_term<kScale>(scale, shared.x.get(i));
            step = step + (shared.counts(i) ? term : A(0));
          }
          data = data + step;
        }
        DVAE_UNROLL
        for (int r = 0; r < kRows; ++r) {
          typename C::template Held<A> derivative;
          const Held& held_scale = full[kFull ? u : 0][kFull ? r : 0];
          DVAE_UNROLL
          for (int i = 0; i < V; ++i) {
            if (!C::has(from, i, end)) continue;
            A ai = a[r][i % kSlots], bi = b[r][i % kSlots];
            const A param = shared.param(raw[u][r].get(i), i), x = shared.x.get(i);
            if constexpr (L::kHasScale) {
              L::template push<kScale>(ai, bi, param, shared.scale_of(held_scale.get(i), i), x);
            } else if constexpr (kDerivative) {
              const A d = L::template push_with_derivative<kCoarse<T>>(ai, bi, param, x);
              derivative.set(i, shared.counts(i) ? d : A(0));
            } else {
              L::template push<kCoarse<T>>(ai, bi, param, x);
            }
            if (shared.counts(i)) {
              a[r][i % kSlots] = ai;
              b[r][i % kSlots] = bi;
            }
          }
          keep(from, raw[u][r], held_scale, derivative);
        }
      }
    }
    DVAE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      DVAE_UNROLL
      for (int w = kSlots / 2; w > 0; w /= 2) {
        DVAE_UNROLL
        for (int i = 0; i < w; ++i) L::merge(a[r][i], b[r][i], a[r][i + w], b[r][i + w]);
      }
      total[r] = total[r] + L::finish(a[r][0], b[r][0]);
      if constexpr (L::kHasDataTerm) total[r] = total[r] + data;
    }
  }
}

// What the log-density of a row of row n has besides the sum over its elements; without a mask it
// is the same of all.
template <class L, class A, bool kMask, class P>
DVAE_DEVICE A density_constant(const P& p, ScaleKind kind, [[maybe_unused]] int64_t n = 0) {
  if constexpr (kMask) {
    return p.mask.constants != nullptr ? static_cast<A>(p.mask.constants[mask_row(p.mask, n)])
                                       : A(0);
  }
  return static_cast<A>(
      L::row_constant(p.size, L::kHasLogScale && kind == ScaleKind::kShared ? *p.log_scale : 0.0));
}

// d log p / d params of one element, times the row's weight; and that of the scale. A weight of 0
// stops a non-finite derivative: 0 · inf would be NaN.
template <class L, class T, ScaleKind kScale, class A>
DVAE_DEVICE A weighted_derivative(A weight, A param, [[maybe_unused]] A scale, A x,
                                  [[maybe_unused]] A& d_scale) {
  A d;
  if constexpr (L::kHasScale) {
    L::template derivative<kScale>(param, scale, x, d, d_scale);
    d_scale = weight == A(0) ? A(0) : weight * d_scale;
  } else {
    d = L::template derivative<kCoarse<T>>(param, x);
  }
  return weight == A(0) ? A(0) : weight * d;
}

template <class A>
DVAE_DEVICE A ratio_of(const LogWeightParams& p, int64_t row) {
  return p.log_ratio != nullptr ? *at<A>(p.log_ratio, row) : A(0);
}

}  // namespace dvae::cuda
