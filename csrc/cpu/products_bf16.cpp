// Products of bfloat16 matrices on AMX's tiles, and by AVX-512 BF16.
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

DVAE_HD uint16_t bits_of(BFloat16 v) { return v.bits; }
DVAE_HD uint16_t bits_of(float v) {
  BFloat16 to;
  store(to, v);
  return to.bits;
}

// n numbers, then zeros, to a whole step.
template <class T>
DVAE_HD void pack_step(const T* from, int64_t n, uint16_t* to) {
  if (n >= kBf16Depth) {
    for (int64_t i = 0; i < kBf16Depth; ++i) to[i] = bits_of(from[i]);
  } else {
    for (int64_t i = 0; i < kBf16Depth; ++i) to[i] = i < n ? bits_of(from[i]) : uint16_t{0};
  }
}

template <class T>
void pack_panels(const T* b, int64_t stride, int64_t depth, int64_t columns, uint32_t* to,
                 int64_t begin, int64_t end) {
  to += begin * bf16_depth(depth) * kBf16Columns / 2;
  for (int64_t first = begin * kBf16Columns; first < end * kBf16Columns; first += kBf16Columns) {
    for (int64_t k = 0; k < depth; k += kBf16Depth) {
      alignas(64) uint16_t rows[kBf16Columns][kBf16Depth];
      for (int64_t c = 0; c < kBf16Columns; ++c) {
        const int64_t n = first + c < columns ? depth - k : 0;
        pack_step(b + (n > 0 ? (first + c) * stride + k : 0), n, rows[c]);
      }
      for (int64_t pair = 0; pair < kBf16Depth / 2; ++pair) {
        for (int64_t c = 0; c < kBf16Columns; ++c) {
          __builtin_memcpy(to + c, rows[c] + 2 * pair, sizeof *to);
        }
        to += kBf16Columns;
      }
    }
  }
}

void pack(const void* b, DType dtype, int64_t stride, int64_t depth, int64_t columns, void* panels,
          int64_t begin, int64_t end) {
  uint32_t* to = static_cast<uint32_t*>(panels);
  if (dtype == DType::kFloat32) {
    pack_panels(static_cast<const float*>(b), stride, depth, columns, to, begin, end);
  } else {
    pack_panels(static_cast<const BFloat16*>(b), stride, depth, columns, to, begin, end);
  }
}

template <class T>
void pack_rows_of(const T* from, int64_t rows, int64_t depth, uint16_t* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; k += kBf16Depth, to += kBf16Depth) {
      pack_step(from + k, depth - k, to);
    }
    from += depth;
  }
}

void pack_rows(const void* from, DType dtype, int64_t rows, int64_t depth, void* a) {
  uint16_t* to = static_cast<uint16_t*>(a);
  if (dtype == DType::kFloat32) {
    pack_rows_of(static_cast<const float*>(from), rows, depth, to);
  } else {
    pack_rows_of(static_cast<const BFloat16*>(from), rows, depth, to);
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
constexpr Bf16Products kProducts = {Unit::kRows, pack,           pack_rows, Unit::begin,
                                    Unit::end,   multiply<Unit>, bernoulli};

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
