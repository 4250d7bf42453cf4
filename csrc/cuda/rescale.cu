// rescale: grad (rows, size) *= factor, of one element or one a row.
//
// 2 · sizeof(T) bytes an element, or none: a factor of 1, which every training step has, ends the
// kernel at once, without the host knowing. Registers (sm_90a): 14–39.
#include "launch.cuh"
#include "pack.cuh"

namespace dvae::cuda {
namespace {

DVAE_DEVICE double read_as_double(DType type, const void* data, int64_t i) {
  switch (type) {
    case DType::kFloat64:
      return *at<double>(data, i);
    case DType::kBFloat16:
      return load(*at<BFloat16>(data, i));
    case DType::kFloat16:
      return load(*at<Half>(data, i));
    default:
      return *at<float>(data, i);
  }
}

// kRows: a factor a row; a pack lies in one row.
template <class T, int V, bool kRows>
__global__ void __launch_bounds__(kThreads, 1)
    rescale_kernel(T* grad, DType factor_type, const void* factors, int64_t packs,
                   int64_t per_row) {
  using A = accumulate_t<T>;
  A factor = static_cast<A>(read_as_double(factor_type, factors, 0));
  if (!kRows && factor == A(1)) return;
  for (int64_t i = first_item(); i < packs; i += item_stride()) {
    if constexpr (kRows) {
      factor = static_cast<A>(read_as_double(factor_type, factors, divide(i, per_row).quotient));
      if (factor == A(1)) continue;
    }
    const auto in = load_pack<T, V>(grad + i * V);
    Pack<T, V> out;
    DVAE_UNROLL
    for (int e = 0; e < V; ++e) set(out, e, factor * load(in.get(e)));
    store_pack<T, V, true>(grad + i * V, out);
  }
}

}  // namespace

cudaError_t rescale(DType dtype, void* grad, DType factor_type, const void* factor, int64_t count,
                    int64_t rows, int64_t size, cudaStream_t stream) {
  const int64_t elements = rows * size;
  if (elements == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = [&](auto kernel, int V) {
      const int64_t packs = elements / V;
      // A few blocks a multiprocessor: cheap to end at once.
      const int64_t most = int64_t{device.multiprocessors} * 8;
      return launch(kernel, grid_of(std::min(blocks_for(device, packs, kThreads), most)), kThreads,
                    0, stream, static_cast<T*>(grad), factor_type, factor, packs,
                    std::max<int64_t>(size / V, 1));
    };
    constexpr int V = kPack<T>;
    if (count == 1) {
      return packs_fit<T>(elements, V, {grad}) ? run(&rescale_kernel<T, V, false>, V)
                                               : run(&rescale_kernel<T, 1, false>, 1);
    }
    return packs_fit<T>(size, V, {grad}) ? run(&rescale_kernel<T, V, true>, V)
                                         : run(&rescale_kernel<T, 1, true>, 1);
  });
}

}  // namespace dvae::cuda
