// softplus and its gradient.
//
// Bytes an element: 2 · sizeof(T), and 3 · sizeof(T) for the gradient.
// Registers (sm_90a, in packs): 31 and 39 (float32), 32 and 56 (16 bits).
#include "../core/math.h"
#include "launch.cuh"
#include "pack.cuh"

namespace dvae::cuda {
namespace {

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 1) softplus_kernel(const T* x, T* out, int64_t packs) {
  for (int64_t i = first_item(); i < packs; i += item_stride()) {
    const auto in = load_pack<T, V>(x + i * V);
    Pack<T, V> to;
    DVAE_UNROLL
    for (int e = 0; e < V; ++e) set(to, e, dvae::softplus(load(in.get(e))));
    store_pack<T, V, true>(out + i * V, to);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 1)
    softplus_backward_kernel(const T* grad, const T* out, T* grad_x, int64_t packs) {
  for (int64_t i = first_item(); i < packs; i += item_stride()) {
    const auto g = load_pack<T, V>(grad + i * V), y = load_pack<T, V>(out + i * V);
    Pack<T, V> to;
    DVAE_UNROLL
    for (int e = 0; e < V; ++e) set(to, e, load(g.get(e)) * one_minus_exp(load(y.get(e))));
    store_pack<T, V, true>(grad_x + i * V, to);
  }
}

// run(V) with the elements of an access as a constant.
template <class T, class F>
cudaError_t with_packs(int64_t n, std::initializer_list<const void*> bases, const F& run) {
  if (packs_fit<T>(n, kPack<T>, bases)) return run(std::integral_constant<int, kPack<T>>());
  return run(std::integral_constant<int, 1>());
}

}  // namespace

cudaError_t softplus(DType dtype, const void* x, void* out, int64_t n, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return with_packs<T>(n, {x, out}, [&](auto pack) {
      constexpr int V = decltype(pack)::value;
      return launch(&softplus_kernel<T, V>, grid_of(blocks_for(device, n / V, kThreads)), kThreads,
                    0, stream, static_cast<const T*>(x), static_cast<T*>(out), n / V);
    });
  });
}

cudaError_t softplus_backward(DType dtype, const void* grad, const void* out, void* grad_x,
                              int64_t n, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return with_packs<T>(n, {grad, out, grad_x}, [&](auto pack) {
      constexpr int V = decltype(pack)::value;
      return launch(&softplus_backward_kernel<T, V>, grid_of(blocks_for(device, n / V, kThreads)),
                    kThreads, 0, stream, static_cast<const T*>(grad), static_cast<const T*>(out),
                    static_cast<T*>(grad_x), n / V);
    });
  });
}

}  // namespace dvae::cuda
