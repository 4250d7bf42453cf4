// corrupt: x (B, D) → x̃ (M, B, D).
//
// Bytes an element: sizeof(T) written, and as much read once for all M copies that one thread
// makes. 20 instructions an element (discrete; docs/instructions.md), a quarter of a Philox call
// among them, or 31 (Gaussian, with half a Box–Muller): of a Hopper chip, what passes while some 3
// and 4 bytes do.
// Registers (sm_90a, float32 in packs): 80–90, with a rate an element 114–128, Gaussian 78.
#include "corruption.cuh"

namespace dvae::cuda {
namespace {

// Blocks of a multiprocessor, at least: one element an access needs many threads, and would have
// fewer of them for the sake of a schedule.
template <class C, class T, int kGroup>
constexpr int kFewest = kGroup > 1 || sizeof(T) == 8  ? 1
                        : C::kDraws == Draws::kNormal ? 5
                                                      : 4;

// A thread takes a unit of an example (kEach: with a rate, or standard deviation, an element) and
// makes the copies blockIdx.y, + gridDim.y, …
template <class C, class T, int kGroup, bool kEach>
__global__ void __launch_bounds__(kThreads, kFewest<C, T, kGroup>)
    corrupt_kernel(const CorruptParams p) {
  using A = accumulate_t<T>;
  using Unit = NoiseUnit<kGroup>;
  constexpr bool kNormal = C::kDraws == Draws::kNormal;
  constexpr bool kUniform = C::kDraws == Draws::kUniform;
  constexpr bool kSalt = std::is_same_v<C, SaltAndPepper>;
  const Key key = kNormal || kUniform ? key_from_seed(*p.noise.seed) : Key{0, 0};
  [[maybe_unused]] int32_t shared_hit = 0, shared_one = 0;
  [[maybe_unused]] A shared_std = 0;
  if constexpr (!kEach && kNormal) shared_std = *at<A>(p.std, 0);
  if constexpr (!kEach && kUniform) shared_hit = hit_threshold(p, 0);
  if constexpr (!kEach && kSalt) shared_one = one_threshold(p, 0);
  const int64_t units = Unit::per_row(p.size), items = p.examples * units;
  for (int64_t item = first_item(); item < items; item += item_stride()) {
    const Quotient q = divide(item, units);
    const Unit unit(q.remainder);
    const uint32_t example = p.noise.first_example + static_cast<uint32_t>(q.quotient);
    Pack<T, kGroup> in[kGroups];
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t j = unit.element(g);
      if (j < p.size) in[g] = load_pack<T, kGroup>(at<T>(p.in, q.quotient * p.size + j));
    }
    for (int64_t copy = blockIdx.y; copy < p.copies; copy += gridDim.y) {
      const uint32_t sample = p.noise.first_sample + static_cast<uint32_t>(copy);
      T* out = at<T>(p.out, (copy * p.examples + q.quotient) * p.size);
      [[maybe_unused]] uint32_t w[kGroups][kGroup];
      [[maybe_unused]] A normal[kGroups][kGroup];
      if constexpr (kNormal) {
        unit.normals(sample, example, kStreamCorruption, key, p.size, normal);
      } else if constexpr (kUniform) {
        unit.words(sample, example, kStreamCorruption, key, w);
      }
      DVAE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        const int64_t j = unit.element(g);
        if (j >= p.size) continue;
        Pack<T, kGroup> made = in[g];
        DVAE_UNROLL
        for (int i = 0; i < kGroup; ++i) {
          if constexpr (kNormal) {
            const A std = kEach ? *at<A>(p.std, j + i) : shared_std;
            set(made, i, C::apply(load(in[g].get(i)), normal[g][i], std));
          } else if constexpr (kUniform) {
            const int32_t hit = kEach ? hit_threshold(p, j + i) : shared_hit;
            const int32_t one = kEach && kSalt ? one_threshold(p, j + i) : shared_one;
            set(made, i, C::apply(load(in[g].get(i)), uniform24(w[g][i]), hit, one));
          }
        }
        store_pack<T, kGroup, true>(out + j, made);
      }
    }
  }
}

}  // namespace

cudaError_t corrupt(DType dtype, const CorruptParams& p, cudaStream_t stream) {
  if (p.copies == 0 || p.examples == 0 || p.size == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_corruption(dtype, p, [&](auto corruption, auto type, auto group, auto each) {
    using T = typename decltype(type)::type;
    constexpr int kGroup = decltype(group)::value;
    const int64_t items = p.examples * divide_up(p.size, kBlock) * (kLanes / kGroup);
    const int64_t x = blocks_for(device, items, kThreads);
    // A thread makes several copies, reading x once, when there are threads enough for all.
    const int64_t wanted = divide_up(int64_t{device.multiprocessors} * 16, x);
    const int64_t y = std::min<int64_t>({p.copies, wanted, 65535});
    return launch(&corrupt_kernel<decltype(corruption), T, kGroup, decltype(each)::value>,
                  grid_of(x, y), kThreads, 0, stream, p);
  });
}

}  // namespace dvae::cuda
