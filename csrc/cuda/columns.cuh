// Sums over rows, per column: threads share out columns and parts of the rows, add in registers,
// and the threads of a block that have the same columns add up through shared memory.
//
// The order of the sums follows from the sizes and the number of parts alone.
#pragma once

#include "launch.cuh"

namespace dvae::cuda {

// A column here is what one thread takes of a row: a pack of elements, or a unit of noise.
struct ColumnLayout {
  int64_t columns;
  int64_t begin, rows;  // the rows [begin, begin + rows)
  int64_t parts, tiles;
  int64_t blocks;  // parts · tiles
  int width;       // columns of a tile
  int slices;      // threads with the same column; width · slices <= kThreads

  // Of V sums a thread.
  template <int V>
  int64_t shared_bytes() const {
    return int64_t{width} * slices * V * 8;
  }
};

inline ColumnLayout column_layout(int64_t columns, int64_t begin, int64_t rows, int64_t parts) {
  ColumnLayout l{};
  l.columns = columns;
  l.begin = begin;
  l.rows = rows;
  l.parts = parts;
  l.width = static_cast<int>(std::min<int64_t>(columns, kThreads));
  l.slices = kThreads / l.width;
  l.tiles = divide_up(columns, l.width);
  l.blocks = parts * l.tiles;
  return l;
}

// Rows added in the accumulation type before they are added up in float64.
constexpr int64_t kColumnFlush = 16;

// Which column and rows are the calling thread's.
struct ColumnThread {
  int64_t part, column, begin, end;
  int slice, lane;

  explicit DVAE_DEVICE ColumnThread(const ColumnLayout& l) {
    const auto thread = static_cast<int>(threadIdx.x);
    const Quotient at = divide(blockIdx.x, l.tiles);
    part = at.quotient;
    slice = thread / l.width;
    lane = thread % l.width;
    column = at.remainder * l.width + lane;
    const int64_t first = share(l.rows, part, l.parts), last = share(l.rows, part + 1, l.parts);
    begin = l.begin + first + share(last - first, slice, l.slices);
    end = l.begin + first + share(last - first, slice + 1, l.slices);
    // Threads past the columns, or past the slices, have nothing to add.
    if (column >= l.columns || slice >= l.slices) end = begin;
  }

 private:
  // n · i / of without overflow, 0 <= i <= of.
  static DVAE_DEVICE int64_t share(int64_t n, int64_t i, int64_t of) {
    const Quotient each = divide(n, of);
    return each.quotient * i + minimum(i, each.remainder);
  }
};

template <class A, int V>
struct ColumnSum {
  A recent[V] = {};
  double total[V] = {};

  DVAE_DEVICE void add(const A (&term)[V]) {
    DVAE_UNROLL
    for (int i = 0; i < V; ++i) recent[i] = recent[i] + term[i];
  }
  DVAE_DEVICE void flush() {
    DVAE_UNROLL
    for (int i = 0; i < V; ++i) {
      total[i] += static_cast<double>(recent[i]);
      recent[i] = A(0);
    }
  }
};

// parts[part, element(i)] = Σ over the block's slices (or += it). All threads call it.
template <class A, int V, class Element>
DVAE_DEVICE void write_column_sums(const ColumnLayout& l, const ColumnThread& thread,
                                   const ColumnSum<A, V>& sum, const Element& element, int64_t size,
                                   double* parts, bool accumulate) {
  double* shared = shared_at<double>();
  const int sums = l.width * V;
  __syncthreads();  // an earlier call's sums have been read
  if (thread.slice < l.slices) {
    DVAE_UNROLL
    for (int i = 0; i < V; ++i)
      shared[thread.slice * sums + i * l.width + thread.lane] = sum.total[i];
  }
  __syncthreads();
  if (thread.slice != 0 || thread.column >= l.columns) return;
  DVAE_UNROLL
  for (int i = 0; i < V; ++i) {
    const int64_t j = element(i);
    if (j >= size) continue;
    double* to = parts + thread.part * size + j;
    double total = accumulate ? *to : 0.0;
    for (int s = 0; s < l.slices; ++s) total += shared[s * sums + i * l.width + thread.lane];
    *to = total;
  }
}

}  // namespace dvae::cuda
