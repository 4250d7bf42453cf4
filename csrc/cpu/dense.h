// A product in Wᵀ of a few rows, W packed once for all of them.
//
// W lies in panels of kPanel columns, two registers wide: a panel's bias, then its columns' weights
// of the first input, the second, … Of kRows rows and a panel all sums stay in registers: each
// input costs two loads of W, kRows of `in` and 2 kRows multiply-adds, which alone bound the loop.
// A row's sums are always added in the order of the inputs, whatever rows come with it.
#pragma once

#include "../core/macros.h"

#ifndef DVAE_VECTOR_BYTES
#define DVAE_DENSE_BYTES 16
#else
#define DVAE_DENSE_BYTES DVAE_VECTOR_BYTES
#endif

DVAE_BEGIN_CORE

// Rows at once: with two registers of sums each, nearly all that there are.
constexpr int kRows = DVAE_DENSE_BYTES == 64 ? 12 : 6;

template <class A>
struct DenseVector {
  typedef A type __attribute__((vector_size(DVAE_DENSE_BYTES)));
};
template <class A>
constexpr int kPanel = 2 * DVAE_DENSE_BYTES / static_cast<int>(sizeof(A));

// weight (outputs, inputs), bias (outputs) or null; zeros after the last column.
template <class A>
DVAE_HD void pack(const A* weight, const A* bias, int64_t inputs, int64_t outputs, A* panels) {
  for (int64_t first = 0; first < outputs; first += kPanel<A>) {
    for (int64_t c = 0; c < kPanel<A>; ++c) {
      const bool inside = first + c < outputs;
      panels[c] = inside && bias != nullptr ? bias[first + c] : A(0);
      const A* row = weight + (first + c) * inputs;
      for (int64_t i = 0; i < inputs; ++i) panels[(i + 1) * kPanel<A> + c] = inside ? row[i] : A(0);
    }
    panels += (inputs + 1) * kPanel<A>;
  }
}

template <class Vector, class A>
DVAE_HD Vector read_vector(const A* from) {
  Vector v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class Vector, class A>
DVAE_HD void write_vector(A* to, Vector v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// kCount rows of one panel, of which `columns` are stored, `stride` apart.
template <int kCount, class A>
DVAE_HD void multiply_panel(const A* in, const A* panel, int64_t inputs, int64_t columns, A* out,
                            int64_t stride) {
  using Vector = typename DenseVector<A>::type;
  constexpr int64_t kWidth = kPanel<A> / 2;
  Vector left[kCount], right[kCount];
  DVAE_UNROLL
  for (int r = 0; r < kCount; ++r) {
    left[r] = read_vector<Vector>(panel);
    right[r] = read_vector<Vector>(panel + kWidth);
  }
  for (int64_t i = 0; i < inputs; ++i) {
    panel += kPanel<A>;
    const Vector w0 = read_vector<Vector>(panel), w1 = read_vector<Vector>(panel + kWidth);
    DVAE_UNROLL
    for (int r = 0; r < kCount; ++r) {
      const A v = in[r * inputs + i];
      left[r] += w0 * v;
      right[r] += w1 * v;
    }
  }
  DVAE_UNROLL
  for (int r = 0; r < kCount; ++r) {
    // A whole panel in place: the sums must not need an address.
    A row[kPanel<A>];
    A* const to = columns == kPanel<A> ? out + r * stride : row;
    write_vector(to, left[r]);
    write_vector(to + kWidth, right[r]);
    if (columns < kPanel<A>) {
      for (int64_t c = 0; c < columns; ++c) out[r * stride + c] = row[c];
    }
  }
}

// in (rows, inputs) → out (rows, outputs). A panel stays in the first-level cache for all rows.
template <class A>
DVAE_HD void multiply_panels(const A* in, const A* panels, int64_t rows, int64_t inputs,
                             int64_t outputs, A* out) {
  for (int64_t first = 0; first < outputs; first += kPanel<A>) {
    const int64_t columns = outputs - first < kPanel<A> ? outputs - first : kPanel<A>;
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
      multiply_panel<kRows>(in + r * inputs, panels, inputs, columns, out + r * outputs + first,
                            outputs);
    }
    for (; r < rows; ++r) {
      multiply_panel<1>(in + r * inputs, panels, inputs, columns, out + r * outputs + first,
                        outputs);
    }
    panels += (inputs + 1) * kPanel<A>;
  }
}

DVAE_END_CORE
