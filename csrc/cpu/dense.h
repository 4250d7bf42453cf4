// A product in Wᵀ of a few rows, W packed once for all of them.
//
// W lies in panels of kPanel columns, two registers wide: a panel's bias, then its columns' weights
// of the first input, the second, … Of kRows rows and a panel all sums stay in registers: each
// input costs two loads of W, kRows of `in` and 2 kRows multiply-adds, which alone bound the loop.
// A row's sums are always added in the order of the inputs, whatever rows come with it.
#pragma once

#include <type_traits>

#include "../core/macros.h"

#ifndef DVAE_VECTOR_BYTES
#define DVAE_DENSE_BYTES 16
#else
#define DVAE_DENSE_BYTES DVAE_VECTOR_BYTES
#endif

DVAE_BEGIN_CORE

// Rows at once: with two registers of sums each, nearly all that there are.
constexpr int kRows = DVAE_DENSE_BYTES == 64 ? 12 : 6;

// Lines of cache, in bytes, that are asked for ahead every so many rounds of a loop, where what is
// gone through is too large for a second-level cache: of weights from so many bytes on.
constexpr int64_t kLine = 64, kAhead = 16, kMuch = 1 << 20;

template <class A>
struct DenseVector {
  typedef A type __attribute__((vector_size(DVAE_DENSE_BYTES)));
};
template <class A>
constexpr int kPanel = 2 * DVAE_DENSE_BYTES / static_cast<int>(sizeof(A));

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

// A 4 × 4 block of rows `stride` apart, transposed.
typedef float Four __attribute__((vector_size(16)));
#if defined(__clang__)
#define DVAE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t FourIndices __attribute__((vector_size(16)));
#define DVAE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourIndices{__VA_ARGS__})
#endif
DVAE_HD void transpose_block(const float* from, int64_t stride, float* to, int64_t to_stride) {
  const Four a = read_vector<Four>(from), b = read_vector<Four>(from + stride);
  const Four c = read_vector<Four>(from + 2 * stride), d = read_vector<Four>(from + 3 * stride);
  const Four low_ab = DVAE_SHUFFLE(a, b, 0, 4, 1, 5), high_ab = DVAE_SHUFFLE(a, b, 2, 6, 3, 7);
  const Four low_cd = DVAE_SHUFFLE(c, d, 0, 4, 1, 5), high_cd = DVAE_SHUFFLE(c, d, 2, 6, 3, 7);
  write_vector(to, DVAE_SHUFFLE(low_ab, low_cd, 0, 1, 4, 5));
  write_vector(to + to_stride, DVAE_SHUFFLE(low_ab, low_cd, 2, 3, 6, 7));
  write_vector(to + 2 * to_stride, DVAE_SHUFFLE(high_ab, high_cd, 0, 1, 4, 5));
  write_vector(to + 3 * to_stride, DVAE_SHUFFLE(high_ab, high_cd, 2, 3, 6, 7));
}
#undef DVAE_SHUFFLE
DVAE_HD void transpose_block(const double* from, int64_t stride, double* to, int64_t to_stride) {
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t c = 0; c < 4; ++c) to[c * to_stride + r] = from[r * stride + c];
  }
}

// weight (outputs, inputs), bias (outputs) or null; zeros after the last column.
template <class A>
DVAE_HD void pack(const A* weight, const A* bias, int64_t inputs, int64_t outputs, A* panels) {
  constexpr int64_t kAtOnce = 16;  // inputs: what they are written to stays in cache
  for (int64_t first = 0; first < outputs; first += kPanel<A>) {
    const int64_t columns = outputs - first < kPanel<A> ? outputs - first : kPanel<A>;
    for (int64_t c = 0; c < kPanel<A>; ++c) {
      panels[c] = c < columns && bias != nullptr ? bias[first + c] : A(0);
    }
    A* const to = panels + kPanel<A>;
    for (int64_t i = 0; i < inputs; i += kAtOnce) {
      const int64_t stop = inputs - i < kAtOnce ? inputs : i + kAtOnce;
      for (int64_t c = 0; c < kPanel<A>; c += 4) {
        const A* const row = weight + (first + c) * inputs;
        int64_t j = i;
        if (c + 4 <= columns) {
          for (; j + 4 <= stop; j += 4) {
            transpose_block(row + j, inputs, to + j * kPanel<A> + c, kPanel<A>);
          }
        }
        for (; j < stop; ++j) {
          for (int64_t d = c; d < c + 4; ++d) {
            to[j * kPanel<A> + d] = d < columns ? row[(d - c) * inputs + j] : A(0);
          }
        }
      }
    }
    panels += (inputs + 1) * kPanel<A>;
  }
}

// The same of a weight's transpose: columns [0, outputs) of (inputs, stride), and no bias.
template <class A>
DVAE_HD void pack_transposed(const A* weight, int64_t stride, int64_t inputs, int64_t outputs,
                             A* panels) {
  for (int64_t first = 0; first < outputs; first += kPanel<A>) {
    const int64_t columns = outputs - first < kPanel<A> ? outputs - first : kPanel<A>;
    for (int64_t c = 0; c < kPanel<A>; ++c) panels[c] = A(0);
    for (int64_t i = 0; i < inputs; ++i) {
      panels += kPanel<A>;
      const A* const row = weight + i * stride + first;
      if (columns == kPanel<A>) {
        __builtin_memcpy(panels, row, sizeof(A) * kPanel<A>);
      } else {
        for (int64_t c = 0; c < kPanel<A>; ++c) panels[c] = c < columns ? row[c] : A(0);
      }
    }
    panels += kPanel<A>;
  }
}

// kCount rows of one panel, of which `columns` are stored, `stride` apart; kVectors: registers of a
// panel that hold any of them. At every kAhead-th input the next `lines` of `ahead` are asked for.
template <int kCount, int kVectors, class A>
DVAE_HD void multiply_panel(const A* in, const A* panel, int64_t inputs, int64_t columns, A* out,
                            int64_t stride, const char* ahead, int64_t lines) {
  using Vector = typename DenseVector<A>::type;
  constexpr int64_t kWidth = kPanel<A> / 2;
  Vector sum[kCount][kVectors];
  DVAE_UNROLL
  for (int r = 0; r < kCount; ++r) {
    DVAE_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[r][v] = read_vector<Vector>(panel + v * kWidth);
  }
  const auto add = [&](int64_t i, int64_t stop) __attribute__((always_inline)) {
    for (; i < stop; ++i) {
      panel += kPanel<A>;
      Vector w[kVectors];
      DVAE_UNROLL
      for (int v = 0; v < kVectors; ++v) w[v] = read_vector<Vector>(panel + v * kWidth);
      DVAE_UNROLL
      for (int r = 0; r < kCount; ++r) {
        const A factor = in[r * inputs + i];
        DVAE_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[r][v] += w[v] * factor;
      }
    }
  };
  int64_t i = 0;
  for (; lines > 0 && i + kAhead <= inputs; i += kAhead) {
    for (int64_t n = 0; n < lines; ++n, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
    add(i, i + kAhead);
  }
  add(i, inputs);
  DVAE_UNROLL
  for (int r = 0; r < kCount; ++r) {
    // A whole panel in place: the sums must not need an address.
    A row[kVectors * kWidth];
    A* const to = columns == kVectors * kWidth ? out + r * stride : row;
    DVAE_UNROLL
    for (int v = 0; v < kVectors; ++v) write_vector(to + v * kWidth, sum[r][v]);
    if (columns < kVectors * kWidth) {
      for (int64_t c = 0; c < columns; ++c) out[r * stride + c] = row[c];
    }
  }
}

// f(count) as a constant in [1, kMost].
template <int kMost, class F>
DVAE_HD void with_count(int64_t count, const F& f) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, f);
  }
  f(std::integral_constant<int, kMost>());
}

// f(first, count), count a constant, for parts of [0, rows), as few as there can be and of nearly
// the same size: a row alone waits for its own sums, and takes as long as several. Not of doubles,
// which are for checks: fewer constants make less code.
template <class A, class F>
DVAE_HD void for_row_groups(int64_t rows, const F& f) {
  int64_t groups = (rows + kRows - 1) / kRows;
  for (int64_t first = 0; groups > 0; --groups) {
    if constexpr (sizeof(A) == sizeof(float)) {
      const int64_t count = (rows - first + groups - 1) / groups;
      with_count<kRows>(count,
                        [&](auto constant) __attribute__((always_inline)) { f(first, constant); });
      first += count;
    } else {
      for (; first + kRows <= rows; first += kRows) f(first, std::integral_constant<int, kRows>());
      for (; first < rows; ++first) f(first, std::integral_constant<int, 1>());
      return;
    }
  }
}

// in (rows, inputs) → out (rows, outputs). A panel stays in the first-level cache for all rows, and
// of large weights the next one is asked for meanwhile, shared out among the rows' groups.
template <class A>
DVAE_HD void multiply_panels(const A* in, const A* panels, int64_t rows, int64_t inputs,
                             int64_t outputs, A* out) {
  constexpr int64_t kBytes = kPanel<A> * static_cast<int64_t>(sizeof(A));
  const int64_t groups = (rows + kRows - 1) / kRows;
  const bool much = sizeof(A) == sizeof(float) && inputs * outputs * int64_t{sizeof(A)} >= kMuch;
  for (int64_t first = 0; first < outputs; first += kPanel<A>) {
    const int64_t columns = outputs - first < kPanel<A> ? outputs - first : kPanel<A>;
    const bool half = columns <= kPanel<A> / 2;
    const A* const next = panels + (inputs + 1) * kPanel<A>;
    const char* ahead = reinterpret_cast<const char*>(next);
    const bool asks = much && first + kPanel<A> < outputs;
    const int64_t lines = asks ? (kAhead * kBytes / kLine + groups - 1) / groups : 0;
    for_row_groups<A>(rows, [&](int64_t r, auto count) __attribute__((always_inline)) {
      const A* const from = in + r * inputs;
      A* const to = out + r * outputs + first;
      if (half) {
        multiply_panel<count(), 1>(from, panels, inputs, columns, to, outputs, ahead, 0);
      } else {
        multiply_panel<count(), 2>(from, panels, inputs, columns, to, outputs, ahead, lines);
      }
      ahead += inputs / kAhead * lines * kLine;
    });
    panels = next;
  }
}

// to (left's columns, right's columns) += leftᵀ right, or = where it is the first of several:
// kCount of left's columns, and kVectors registers of right's, of which `columns` are stored. May
// read past a row of right's by less than a panel. `ahead`, of to's stride, is asked for meanwhile;
// or null.
template <int kCount, int kVectors, class A>
DVAE_HD void add_outer_panel(const A* left, int64_t left_stride, const A* right,
                             int64_t right_stride, int64_t rows, int64_t columns, bool first, A* to,
                             int64_t to_stride, const A* ahead) {
  using Vector = typename DenseVector<A>::type;
  constexpr int64_t kWidth = kPanel<A> / 2;
  const bool whole = columns == kVectors * kWidth;
  Vector sum[kCount][kVectors] = {};
  if (!first) {
    DVAE_UNROLL
    for (int o = 0; o < kCount; ++o) {
      A part[kVectors * kWidth] = {};
      const A* from = to + o * to_stride;
      if (!whole) {
        for (int64_t c = 0; c < columns; ++c) part[c] = from[c];
        from = part;
      }
      DVAE_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[o][v] = read_vector<Vector>(from + v * kWidth);
    }
  }
  const auto add = [&](int64_t count) __attribute__((always_inline)) {
    for (int64_t r = 0; r < count; ++r) {
      Vector w[kVectors];
      DVAE_UNROLL
      for (int v = 0; v < kVectors; ++v) w[v] = read_vector<Vector>(right + v * kWidth);
      DVAE_UNROLL
      for (int o = 0; o < kCount; ++o) {
        const A factor = left[o];
        DVAE_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[o][v] += w[v] * factor;
      }
      left += left_stride;
      right += right_stride;
    }
  };
  const int64_t times = ahead == nullptr ? 0 : rows / kAhead;
  for (int64_t time = 0, o = 0; time < times; ++time) {
    for (; o * times < kCount * (time + 1); ++o) {
      __builtin_prefetch(ahead + o * to_stride, 1, 2);
      __builtin_prefetch(ahead + o * to_stride + kWidth, 1, 2);
    }
    add(kAhead);
  }
  add(rows - times * kAhead);
  DVAE_UNROLL
  for (int o = 0; o < kCount; ++o) {
    A part[kVectors * kWidth];
    A* const out = whole ? to + o * to_stride : part;
    DVAE_UNROLL
    for (int v = 0; v < kVectors; ++v) write_vector(out + v * kWidth, sum[o][v]);
    if (!whole) {
      for (int64_t c = 0; c < columns; ++c) to[o * to_stride + c] = part[c];
    }
  }
}

// f(i, columns, vectors) for the panels of `inputs`, the registers that hold any of one's columns a
// constant.
template <class A, class F>
DVAE_HD void for_panels(int64_t inputs, const F& f) {
  for (int64_t i = 0; i < inputs; i += kPanel<A>) {
    const int64_t columns = inputs - i < kPanel<A> ? inputs - i : kPanel<A>;
    if (columns <= kPanel<A> / 2) {
      f(i, columns, std::integral_constant<int, 1>());
    } else {
      f(i, columns, std::integral_constant<int, 2>());
    }
  }
}

// kDepth rows of left's next `outputs` columns, group by group, and of one of right's panels, each
// lying together: rows far apart are a page each, of which a processor remembers fewer, and fall to
// few places of the first-level cache.
template <class A>
struct Gathered {
  static constexpr int64_t kDepth = 128, kOutputs = 64 / static_cast<int64_t>(sizeof(A)) * kRows;
  static constexpr int64_t kFar = 2048 / static_cast<int64_t>(sizeof(A));
  alignas(64) A left[kOutputs * kDepth];
  alignas(64) A right[kPanel<A> * kDepth];

  DVAE_HD void add(const A* from, int64_t stride, const A* panels, int64_t rows, int64_t outputs,
                   int64_t inputs, bool first, A* to) {
    for_row_groups<A>(outputs, [&](int64_t o, auto count) __attribute__((always_inline)) {
      A* into = left + o * rows;
      for (int64_t r = 0; r < rows; ++r, into += count()) {
        __builtin_memcpy(into, from + r * stride + o, sizeof(A) * count());
      }
    });
    for_panels<A>(inputs, [&](int64_t i, int64_t columns, auto vectors) {
      for (int64_t r = 0; r < rows; ++r) {
        __builtin_memcpy(right + r * kPanel<A>, panels + r * inputs + i, sizeof(A) * kPanel<A>);
      }
      for_row_groups<A>(outputs, [&](int64_t o, auto count) __attribute__((always_inline)) {
        add_outer_panel<count(), vectors()>(left + o * rows, count(), right, kPanel<A>, rows,
                                            columns, first, to + o * inputs + i, inputs,
                                            first ? nullptr : to + o * inputs + i + kPanel<A>);
      });
    });
  }
};

// to (outputs, inputs) += leftᵀ right, left (rows, outputs of a stride), right (rows, inputs): a
// layer's gradient. A panel of right's stays in the first-level cache.
template <class A>
DVAE_HD void add_outer_panels(const A* left, int64_t stride, const A* right, int64_t rows,
                              int64_t outputs, int64_t inputs, bool first, A* to) {
  using Near = Gathered<A>;
  if (stride >= Near::kFar || inputs >= Near::kFar) {
    Near near;
    for (int64_t r = 0; r < rows; r += Near::kDepth) {
      const int64_t depth = rows - r < Near::kDepth ? rows - r : Near::kDepth;
      for (int64_t o = 0; o < outputs; o += Near::kOutputs) {
        const int64_t count = outputs - o < Near::kOutputs ? outputs - o : Near::kOutputs;
        near.add(left + r * stride + o, stride, right + r * inputs, depth, count, inputs,
                 first && r == 0, to + o * inputs);
      }
    }
    return;
  }
  const A* const none = nullptr;
  for_panels<A>(inputs, [&](int64_t i, int64_t columns, auto vectors) {
    for_row_groups<A>(outputs, [&](int64_t o, auto count) __attribute__((always_inline)) {
      add_outer_panel<count(), vectors()>(left + o, stride, right + i, inputs, rows, columns, first,
                                          to + o * inputs + i, inputs, none);
    });
  });
}

DVAE_END_CORE
