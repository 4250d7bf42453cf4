// Products of bfloat16 matrices with sums in float32, by the instructions that some CPUs have for
// them: AMX's tiles, or AVX-512 BF16.
//
//   C (rows, columns) = start + A Bᵀ,   A (rows, depth), B (columns, depth)
//
// B is packed once, in panels of 16 columns: the columns' numbers 0 and 1 beside each other, then
// 2 and 3, …, with zeros up to a whole number of 32. So two numbers of each of 16 columns are a
// register, and 16 of these on end a tile. A is in rows of that many numbers, zeros at their end.
//
// A row of C depends on its row of A alone, and is the same bits whatever rows come with it. The
// instructions take denormals for 0.
#pragma once

#include "../core/params.h"
#include "isa.h"

#if defined(__x86_64__) && defined(__linux__) && \
    (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define DVAE_HAVE_BF16 1
#else
#define DVAE_HAVE_BF16 0
#endif

namespace dvae::cpu {

constexpr int64_t kBf16Depth = 32;    // a row of A is a whole number of these
constexpr int64_t kBf16Columns = 16;  // of a panel

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
// Numbers in a row of A, with the zeros at its end.
inline int64_t bf16_depth(int64_t depth) { return round_up(depth, kBf16Depth); }
// Bytes of B's panels.
inline int64_t bf16_panel_bytes(int64_t depth, int64_t columns) {
  return bf16_depth(depth) * round_up(columns, kBf16Columns) * 2;
}

struct Bf16Product {
  const void* a;  // of bf16_depth(depth) numbers a row, that memory there for whole blocks of
                  // Bf16Products::rows
  const void* panels;
  int64_t rows, depth, columns;
  const float* start;  // one a column, for whole panels; null: 0
  float* c;  // rows `stride` apart
  int64_t stride;
  bool add;  // to what c holds, in place of start
  // Or, where c is null, f(C) as another product's A: of bf16_depth(columns) numbers a row.
  void* next;
  Activation activation;
};

struct Bf16Products {
  int64_t rows;  // taken at once
  // Rows of float32 or bfloat16, `stride` apart, to panels. Panels [begin, end) alone.
  void (*pack)(const void* b, DType, int64_t stride, int64_t depth, int64_t columns, void* panels,
               int64_t begin, int64_t end);
  // The same of rows of Bᵀ, (depth, columns).
  void (*pack_across)(const void* b, DType, int64_t stride, int64_t depth, int64_t columns,
                      void* panels, int64_t begin, int64_t end);
  // Numbers of float32 or bfloat16, rows `depth` long on end, to A. And of Aᵀ (depth, rows).
  void (*pack_rows)(const void* from, DType, int64_t rows, int64_t depth, void* a);
  void (*pack_rows_across)(const float* from, int64_t depth, int64_t rows, void* a);
  // Before a thread's products and after them; the likelihood's kernels may run between.
  void (*begin)();
  void (*end)();
  void (*multiply)(const Bf16Product&);
  // The table of kernels' log_weights of a Bernoulli's float32 logits that `multiply` made, without
  // a bias and a mask: right to what bfloat16 leaves of them, in less time.
  void (*bernoulli)(const LogWeightParams&, int64_t begin, int64_t end);
  // grad (rows, columns) *= f'(y), of f(y) as another product's A.
  void (*activation_backward)(Activation, float* grad, const void* made, int64_t rows,
                              int64_t columns);
};

// A thread's products.
class Bf16Session {
 public:
  explicit Bf16Session(const Bf16Products& products) : products_(products) { products_.begin(); }
  ~Bf16Session() { products_.end(); }
  Bf16Session(const Bf16Session&) = delete;
  Bf16Session& operator=(const Bf16Session&) = delete;

 private:
  const Bf16Products& products_;
};

// Null where they were not compiled.
const Bf16Products* bf16_products_avx512();
const Bf16Products* bf16_products_amx();

// Those of the level in use (isa.h); null where there are none, or where the system keeps AMX's
// registers to itself.
const Bf16Products* bf16_products();
// The level that they are of; kBase where there are none.
Isa bf16_isa();

}  // namespace dvae::cpu
