// corrupt's gradients.
//
// x: (M + 1)/M · sizeof(T) bytes an element of grad. std: sizeof(T).
// Registers (sm_90a, float32): 92–116 in packs, 62–74 not, 86 for std.
#include "columns.cuh"
#include "corruption.cuh"

namespace dvae::cuda {
namespace {

// Σ over copies of grad · ∂x̃/∂x; 1 where C draws no uniforms.
template <class C, class T, int kGroup, bool kEach>
__global__ void __launch_bounds__(kThreads, 1) corrupt_backward_kernel(const CorruptParams p) {
  using A = accumulate_t<T>;
  using Unit = NoiseUnit<kGroup>;
  constexpr bool kUniform = C::kDraws == Draws::kUniform;
  const Key key = kUniform ? key_from_seed(*p.noise.seed) : Key{0, 0};
  [[maybe_unused]] const int32_t shared_hit = kUniform && !kEach ? hit_threshold(p, 0) : 0;
  const int64_t units = Unit::per_row(p.size), items = p.examples * units;
  for (int64_t item = first_item(); item < items; item += item_stride()) {
    const Quotient q = divide(item, units);
    const Unit unit(q.remainder);
    const uint32_t example = p.noise.first_example + static_cast<uint32_t>(q.quotient);
    A sum[kGroups][kGroup] = {};
    for (int64_t copy = 0; copy < p.copies; ++copy) {
      const T* grad = at<T>(p.in, (copy * p.examples + q.quotient) * p.size);
      [[maybe_unused]] uint32_t w[kGroups][kGroup];
      if constexpr (kUniform) {
        unit.words(p.noise.first_sample + static_cast<uint32_t>(copy), example, kStreamCorruption,
                   key, w);
      }
      DVAE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        const int64_t j = unit.element(g);
        if (j >= p.size) continue;
        const auto in = load_pack<T, kGroup>(grad + j);
        DVAE_UNROLL
        for (int i = 0; i < kGroup; ++i) {
          A v = load(in.get(i));
          if constexpr (kUniform) {
            const int32_t hit = kEach ? hit_threshold(p, j + i) : shared_hit;
            v = C::derivative(v, uniform24(w[g][i]), hit);
          }
          sum[g][i] = sum[g][i] + v;
        }
      }
    }
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t j = unit.element(g);
      if (j >= p.size) continue;
      Pack<T, kGroup> out;
      DVAE_UNROLL
      for (int i = 0; i < kGroup; ++i) set(out, i, sum[g][i]);
      store_pack<T, kGroup, true>(at<T>(p.out, q.quotient * p.size + j), out);
    }
  }
}

// Σ over a part of the rows (copy, example) of grad · noise, per dimension.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    corrupt_backward_std_kernel(const CorruptParams p, const ColumnLayout layout, double* parts) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(*p.noise.seed);
  const ColumnThread thread(layout);
  const NoiseUnit<1> unit(thread.column);
  ColumnSum<A, kGroups> sum;
  Quotient q = divide(thread.begin, maximum(p.examples, 1));
  for (int64_t row = thread.begin; row < thread.end; ++row) {
    A normal[kGroups][1], term[kGroups] = {};
    unit.normals(p.noise.first_sample + static_cast<uint32_t>(q.quotient),
                 p.noise.first_example + static_cast<uint32_t>(q.remainder), kStreamCorruption, key,
                 p.size, normal);
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t j = unit.element(g);
      if (j < p.size) term[g] = normal[g][0] * load(*at<T>(p.in, row * p.size + j));
    }
    sum.add(term);
    if ((row - thread.begin) % kColumnFlush == kColumnFlush - 1) sum.flush();
    if (++q.remainder == p.examples) q = {q.quotient + 1, 0};
  }
  sum.flush();
  const auto element = [&](int g) { return unit.element(g); };
  write_column_sums(layout, thread, sum, element, p.size, parts, false);
}

}  // namespace

cudaError_t corrupt_backward(DType dtype, const CorruptParams& p, cudaStream_t stream) {
  if (p.examples == 0 || p.size == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_corruption(dtype, p, [&](auto corruption, auto type, auto group, auto each) {
    using T = typename decltype(type)::type;
    constexpr int kGroup = decltype(group)::value;
    using Given = decltype(corruption);
    using C = std::conditional_t<Given::kDraws == Draws::kUniform, Given, Identity>;
    const int64_t items = p.examples * divide_up(p.size, kBlock) * (kLanes / kGroup);
    return launch(&corrupt_backward_kernel<C, T, kGroup, decltype(each)::value>,
                  grid_of(blocks_for(device, items, kThreads)), kThreads, 0, stream, p);
  });
}

cudaError_t corrupt_backward_std(DType dtype, const CorruptParams& p, double* std_parts,
                                 int64_t parts, cudaStream_t stream) {
  if (p.size == 0) return cudaSuccess;
  const ColumnLayout layout =
      column_layout(divide_up(p.size, kBlock) * kLanes, 0, p.copies * p.examples, parts);
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(&corrupt_backward_std_kernel<T>, grid_of(layout.blocks), kThreads,
                  layout.shared_bytes<kGroups>(), stream, p, layout, std_parts);
  });
}

}  // namespace dvae::cuda
