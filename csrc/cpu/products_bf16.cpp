// Products of bfloat16 matrices on AMX's tiles, and by AVX-512 BF16.
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header, of its undefined registers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "products.h"

#include <type_traits>

#define DVAE_ISA isa_bf16
#include "target_bf16.h"
#if DVAE_HAVE_TARGET
#include "../core/coarse.h"
#include "../core/half.h"
#include "../core/noise.h"

// As in kernels.inl.
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wunknown-pragmas"
#endif

namespace dvae::cpu {
namespace {

#include "lanes.inl"

constexpr int64_t kWidth = 2 * kBf16Columns;   // columns of a block: two panels
constexpr int64_t kRowBytes = 2 * kBf16Depth;  // of a tile: what a step along the sum takes
constexpr int64_t kTileBytes = 16 * kRowBytes;
alignas(64) constexpr float kZeros[kWidth] = {};

// --- packing ----------------------------------------------------------------------------------

// 16 registers of 16 numbers of 32 bits, transposed.
DVAE_HD void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  DVAE_UNROLL
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  DVAE_UNROLL
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Each quarter of r[4 i + j] now has four rows' numbers of the column 4 · quarter + j.
  DVAE_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512i low_a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x44);
    const __m512i low_b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x44);
    const __m512i high_a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xee);
    const __m512i high_b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xee);
    t[j] = _mm512_shuffle_i32x4(low_a, low_b, 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(low_a, low_b, 0xdd);
    t[8 + j] = _mm512_shuffle_i32x4(high_a, high_b, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(high_a, high_b, 0xdd);
  }
  DVAE_UNROLL
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// The first n of 16.
DVAE_HD __mmask16 first_of_16(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
}

// n numbers, or 32 of more, then zeros.
DVAE_HD __m512i step_of(const float* from, int64_t n) {
  const __m512 low = _mm512_maskz_loadu_ps(first_of_16(n), from);
  const __m512 high = _mm512_maskz_loadu_ps(first_of_16(n - 16), from + 16);
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}
DVAE_HD __m512i step_of(const BFloat16* from, int64_t n) {
  const auto kept = static_cast<__mmask32>(n >= 32 ? ~uint32_t{0} : (uint32_t{1} << n) - 1);
  return _mm512_maskz_loadu_epi16(kept, from);
}

// Of 16 columns of two rows, the first `kept`: each column's two numbers beside each other. The
// second row may be null, for zeros.
DVAE_HD __m512i pairs_of(const float* low, const float* high, __mmask16 kept) {
  const __m512 a = _mm512_maskz_loadu_ps(kept, low);
  const __m512 b = high == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(kept, high);
  const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
  const __m512i order = _mm512_add_epi32(
      _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
      _mm512_slli_epi32(
          _mm512_set_epi32(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16), 16));
  return _mm512_permutexvar_epi16(order, both);
}
DVAE_HD __m512i pairs_of(const BFloat16* low, const BFloat16* high, __mmask16 kept) {
  const __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(kept, low));
  if (high == nullptr) return a;
  const __m512i b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(kept, high));
  return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

template <class T>
void pack_panels(const T* b, int64_t stride, int64_t depth, int64_t columns, char* to,
                 int64_t begin, int64_t end) {
  to += begin * kBf16Columns * bf16_depth(depth) * 2;
  for (int64_t first = begin * kBf16Columns; first < end * kBf16Columns; first += kBf16Columns) {
    for (int64_t k = 0; k < depth; k += kBf16Depth) {
      __m512i rows[16];
      for (int64_t c = 0; c < kBf16Columns; ++c) {
        rows[c] = first + c < columns ? step_of(b + (first + c) * stride + k, depth - k)
                                      : _mm512_setzero_si512();
      }
      transpose(rows);
      for (int64_t pair = 0; pair < kBf16Depth / 2; ++pair, to += kRowBytes) {
        _mm512_store_si512(to, rows[pair]);
      }
    }
  }
}

// f(from), of numbers of that type.
template <class F>
void with_numbers(const void* from, DType dtype, const F& f) {
  dtype == DType::kFloat32 ? f(static_cast<const float*>(from))
                           : f(static_cast<const BFloat16*>(from));
}

void pack(const void* b, DType dtype, int64_t stride, int64_t depth, int64_t columns, void* panels,
          int64_t begin, int64_t end) {
  with_numbers(b, dtype, [&](const auto* from) {
    pack_panels(from, stride, depth, columns, static_cast<char*>(panels), begin, end);
  });
}

template <class T>
void pack_panels_across(const T* b, int64_t stride, int64_t depth, int64_t columns, char* to,
                        int64_t begin, int64_t end) {
  const int64_t steps = bf16_depth(depth);
  to += begin * kBf16Columns * steps * 2;
  for (int64_t first = begin * kBf16Columns; first < end * kBf16Columns; first += kBf16Columns) {
    const __mmask16 kept = first_of_16(columns - first);
    int64_t k = 0;
    for (; k < depth; k += 2, to += kRowBytes) {
      const T* const row = b + k * stride + first;
      _mm512_store_si512(to, pairs_of(row, k + 1 < depth ? row + stride : nullptr, kept));
    }
    for (; k < steps; k += 2, to += kRowBytes) _mm512_store_si512(to, _mm512_setzero_si512());
  }
}

void pack_across(const void* b, DType dtype, int64_t stride, int64_t depth, int64_t columns,
                 void* panels, int64_t begin, int64_t end) {
  with_numbers(b, dtype, [&](const auto* from) {
    pack_panels_across(from, stride, depth, columns, static_cast<char*>(panels), begin, end);
  });
}

template <class T>
void pack_rows_of(const T* from, int64_t rows, int64_t depth, uint16_t* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; k += kBf16Depth, to += kBf16Depth) {
      _mm512_store_si512(to, step_of(from + k, depth - k));
    }
    from += depth;
  }
}

void pack_rows(const void* from, DType dtype, int64_t rows, int64_t depth, void* a) {
  with_numbers(from, dtype, [&](const auto* numbers) {
    pack_rows_of(numbers, rows, depth, static_cast<uint16_t*>(a));
  });
}

void pack_rows_across(const float* from, int64_t depth, int64_t rows, void* a) {
  const int64_t steps = bf16_depth(depth);
  for (int64_t k = 0; k < depth; k += kBf16Depth) {
    for (int64_t r = 0; r < rows; r += 16) {
      const __mmask16 kept = first_of_16(rows - r);
      __m512i v[16];
      for (int64_t pair = 0; pair < 16; ++pair) {
        const int64_t at = k + 2 * pair;
        const float* const row = from + at * rows + r;
        v[pair] = at < depth ? pairs_of(row, at + 1 < depth ? row + rows : nullptr, kept)
                             : _mm512_setzero_si512();
      }
      transpose(v);
      uint16_t* const to = static_cast<uint16_t*>(a) + r * steps + k;
      for (int64_t i = 0; i < 16 && r + i < rows; ++i) _mm512_store_si512(to + i * steps, v[i]);
    }
  }
}

// --- blocks -----------------------------------------------------------------------------------

// A few rows by two panels; strides in bytes.
struct Block {
  const char* a;
  int64_t a_stride;
  const char* b;
  int64_t panel;       // bytes
  int64_t depth;       // padded, of a row
  const float* start;  // rows `start_stride` apart: 0 where they are all the same
  int64_t start_stride;
  float* c;
  int64_t c_stride;
};

template <class T>
DVAE_HD T* after(T* p, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(const_cast<std::remove_const_t<T>*>(p)) +
                              bytes);
}

struct Amx {
  static constexpr int64_t kRows = 32;

  // Tiles 0 and 1 are the upper 16 rows of C, 2 and 3 the lower; 4 and 5 of A, 6 and 7 of B.
  template <bool kLower, bool kRight>
  static void run(const Block& p) {
    const char *a = p.a, *b = p.b;
    const int64_t lower = 16 * p.start_stride;
    // What was written in C++ must lie in memory: not every compiler knows that tiles read it.
    __asm__ volatile("" ::: "memory");
    _tile_loadd(0, p.start, p.start_stride);
    if constexpr (kRight) _tile_loadd(1, p.start + kBf16Columns, p.start_stride);
    if constexpr (kLower) _tile_loadd(2, after(p.start, lower), p.start_stride);
    if constexpr (kLower && kRight) {
      _tile_loadd(3, after(p.start, lower) + kBf16Columns, p.start_stride);
    }
    for (int64_t k = 0; k < p.depth; k += kBf16Depth) {
      _tile_loadd(4, a, p.a_stride);
      _tile_loadd(6, b, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kRight) {
        _tile_loadd(7, b + p.panel, kRowBytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kLower) {
        _tile_loadd(5, a + 16 * p.a_stride, p.a_stride);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kRight) _tile_dpbf16ps(3, 5, 7);
      }
      a += kRowBytes;
      b += kTileBytes;
    }
    _tile_stored(0, p.c, p.c_stride);
    if constexpr (kRight) _tile_stored(1, p.c + kBf16Columns, p.c_stride);
    if constexpr (kLower) {
      float* const below = after(p.c, 16 * p.c_stride);
      _tile_stored(2, below, p.c_stride);
      if constexpr (kRight) _tile_stored(3, below + kBf16Columns, p.c_stride);
    }
  }
  static void run(const Block& p, int64_t rows, bool right) {
    if (rows > 16) return right ? run<true, true>(p) : run<true, false>(p);
    return right ? run<false, true>(p) : run<false, false>(p);
  }

  static void begin() {
    struct alignas(64) Tiles {
      uint8_t palette = 1, first_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Tiles kTiles;
    _tile_loadconfig(&kTiles);
  }
  static void end() { _tile_release(); }
};

struct Avx512 {
  static constexpr int64_t kRows = 12;

  template <bool kRight>
  static void run(const Block& p) {
    __m512 left[kRows], right[kRows];
    DVAE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float* from = after(p.start, r * p.start_stride);
      left[r] = _mm512_loadu_ps(from);
      if constexpr (kRight) right[r] = _mm512_loadu_ps(from + kBf16Columns);
    }
    const char *a = p.a, *b = p.b;
    for (int64_t k = 0; k < p.depth; k += 2) {
      const auto b0 = reinterpret_cast<__m512bh>(_mm512_load_si512(b));
      __m512bh b1 = b0;
      if constexpr (kRight) b1 = reinterpret_cast<__m512bh>(_mm512_load_si512(b + p.panel));
      DVAE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        int32_t pair;
        __builtin_memcpy(&pair, a + r * p.a_stride, sizeof pair);
        const auto v = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
        left[r] = _mm512_dpbf16_ps(left[r], v, b0);
        if constexpr (kRight) right[r] = _mm512_dpbf16_ps(right[r], v, b1);
      }
      a += sizeof(int32_t);
      b += kRowBytes;
    }
    DVAE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float* const to = after(p.c, r * p.c_stride);
      _mm512_storeu_ps(to, left[r]);
      if constexpr (kRight) _mm512_storeu_ps(to + kBf16Columns, right[r]);
    }
  }
  static void run(const Block& p, int64_t, bool right) { right ? run<true>(p) : run<false>(p); }

  static void begin() {}
  static void end() {}
};

// --- products ---------------------------------------------------------------------------------

// rows × kWidth sums → f of them, in rows of bfloat16: `columns` of them, then zeros.
void finish(float* sums, int64_t rows, int64_t columns, Activation activation, uint16_t* to,
            int64_t stride) {
  const auto each = [&](auto f) __attribute__((always_inline)) {
#pragma GCC ivdep
    for (int64_t i = 0; i < rows * kWidth; ++i) sums[i] = f(sums[i]);
  };
  switch (activation) {
    case Activation::kNone:
      break;
    case Activation::kSoftplus:
      each([](float x) __attribute__((always_inline)) { return coarse_softplus(x); });
      break;
    case Activation::kRelu:
      each([](float x) __attribute__((always_inline)) { return x < 0 ? 0.0f : x; });
      break;
    case Activation::kTanh:
      each([](float x) __attribute__((always_inline)) { return tanh(x); });
      break;
  }
  const auto kept = static_cast<__mmask32>((uint64_t{1} << columns) - 1);
  for (int64_t r = 0; r < rows; ++r) {
    const __m512 low = _mm512_load_ps(sums + r * kWidth);
    const __m512 high = _mm512_load_ps(sums + r * kWidth + kBf16Columns);
    const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_store_si512(to + r * stride, _mm512_maskz_mov_epi16(kept, both));
  }
}

void activation_backward(Activation f, float* grad, const void* made, int64_t rows,
                         int64_t columns) {
  const auto each = [&](auto pulled) __attribute__((always_inline)) {
    const uint16_t* y = static_cast<const uint16_t*>(made);
    for (int64_t r = 0; r < rows; ++r, y += bf16_depth(columns), grad += columns) {
#pragma GCC ivdep
      for (int64_t i = 0; i < columns; ++i) {
        grad[i] = pulled(grad[i], bit_cast<float>(static_cast<uint32_t>(y[i]) << 16));
      }
    }
  };
  switch (f) {
    case Activation::kNone:
      break;
    case Activation::kSoftplus:
      return each([](float d, float v)
                      __attribute__((always_inline)) { return d * one_minus_exp(v); });
    case Activation::kRelu:
      return each([](float d, float v)
                      __attribute__((always_inline)) { return v <= 0 ? 0.0f : d; });
    case Activation::kTanh:
      return each([](float d, float v)
                      __attribute__((always_inline)) { return d * (1.0f - v * v); });
  }
}

DVAE_HD void copy_block(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                        float* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[r * to_stride + c] = from[r * from_stride + c];
  }
}

template <class Unit>
void multiply(const Bf16Product& p) {
  alignas(64) float sums[Unit::kRows * kWidth] = {};
  const int64_t depth = bf16_depth(p.depth), to_stride = bf16_depth(p.columns);
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  Block block{};
  block.a_stride = 2 * depth;
  block.panel = 2 * depth * kBf16Columns;
  block.depth = depth;
  block.b = static_cast<const char*>(p.panels);
  // The panels outside: they stay in the first-level cache for all rows.
  for (int64_t column = 0; column < p.columns; column += kWidth, block.b += 2 * block.panel) {
    const int64_t columns = p.columns - column < kWidth ? p.columns - column : kWidth;
    for (int64_t row = 0; row < p.rows; row += Unit::kRows) {
      const int64_t rows = p.rows - row < Unit::kRows ? p.rows - row : Unit::kRows;
      float* const c = p.c == nullptr ? nullptr : p.c + row * p.stride + column;
      const bool direct =
          c != nullptr && rows == Unit::kRows && (columns == kWidth || columns == kBf16Columns);
      block.a = static_cast<const char*>(p.a) + row * block.a_stride;
      block.c = direct ? c : sums;
      block.c_stride = kFloat * (direct ? p.stride : kWidth);
      block.start = p.start == nullptr ? kZeros : p.start + column;
      block.start_stride = 0;
      if (p.add) {
        if (!direct) copy_block(c, p.stride, rows, columns, sums, kWidth);
        block.start = block.c;
        block.start_stride = block.c_stride;
      }
      Unit::run(block, rows, columns > kBf16Columns);
      if (c == nullptr) {
        finish(sums, rows, columns, p.activation,
               static_cast<uint16_t*>(p.next) + row * to_stride + column, to_stride);
      } else if (!direct) {
        copy_block(sums, kWidth, rows, columns, c, p.stride);
      }
    }
  }
}

// --- what a likelihood makes of them
// --------------------------------------------------------------

template <bool kInfinite>
DVAE_HD float bernoulli_row(const float* logits, const float* x, int64_t size) {
  double total = 0;
  for (int64_t j = 0; j < size;) {
    const int64_t left = size - j, most = CoarseBernoulli::kMaxPush * kLanes;
    const int64_t stop = j + (left < most ? left : most);
    alignas(64) float a[kLanes], b[kLanes];
    for (int i = 0; i < kLanes; ++i) a[i] = 0, b[i] = 1;
    for (; j + kLanes <= stop; j += kLanes) {
#pragma GCC ivdep
      for (int i = 0; i < kLanes; ++i) {
        CoarseBernoulli::push<kInfinite>(a[i], b[i], logits[j + i], x[j + i]);
      }
    }
    for (int i = 0; i < stop - j; ++i) {
      CoarseBernoulli::push<kInfinite>(a[i], b[i], logits[j + i], x[j + i]);
    }
    j = stop;
    for (int i = 0; i < kLanes; ++i) a[i] = CoarseBernoulli::finish(a[i], b[i]);
    total += static_cast<double>(sum_lanes(a));
  }
  return static_cast<float>(total);
}

void bernoulli(const LogWeightParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* logits = static_cast<const float*>(p.params) + (row - p.first_row) * p.size;
    const float* x = static_cast<const float*>(p.x) + row / p.samples % p.examples * p.size;
    float density = bernoulli_row<false>(logits, x, p.size);
    // A NaN may come of an infinite logit.
    if (density != density) density = bernoulli_row<true>(logits, x, p.size);
    const float* ratio = static_cast<const float*>(p.log_ratio);
    static_cast<float*>(p.log_w)[row] = (ratio != nullptr ? ratio[row] : 0.0f) + density;
  }
}

template <class Unit>
constexpr Bf16Products kProducts = {
    Unit::kRows, pack,      pack_across,    pack_rows, pack_rows_across,
    Unit::begin, Unit::end, multiply<Unit>, bernoulli, activation_backward};

}  // namespace
}  // namespace dvae::cpu
#endif
#include "target_end.h"

namespace dvae::cpu {

#if DVAE_HAVE_TARGET
const Bf16Products* bf16_products_avx512() { return &kProducts<Avx512>; }
const Bf16Products* bf16_products_amx() { return &kProducts<Amx>; }
#else
const Bf16Products* bf16_products_avx512() { return nullptr; }
const Bf16Products* bf16_products_amx() { return nullptr; }
#endif

}  // namespace dvae::cpu
