// Launching: sizes of grids, and the choice of a kernel by dtype and alignment.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "../core/half.h"
#include "device.cuh"
#include "kernels.h"

namespace dvae::cuda {

// What a launch depends on of the current device.
struct Device {
  int multiprocessors = 0;
  int shared_bytes = 0;  // that a block may ask for
  int shared_total = 0;  // of a multiprocessor, of which each block takes shared_reserved more
  int shared_reserved = 0;
  int max_grid = 0;      // blocks in x
};

inline cudaError_t query(Device& device) {
  int id = 0;
  cudaError_t error = cudaGetDevice(&id);
  const auto get = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, id);
  };
  get(&device.multiprocessors, cudaDevAttrMultiProcessorCount);
  get(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  get(&device.shared_total, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  get(&device.shared_reserved, cudaDevAttrReservedSharedMemoryPerBlock);
  get(&device.max_grid, cudaDevAttrMaxGridDimX);
  return error;
}

inline int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Blocks for `items` of which each takes per_block; kernels go round where there are too few.
inline int64_t blocks_for(const Device& device, int64_t items, int64_t per_block) {
  return std::min<int64_t>(divide_up(items, per_block), device.max_grid);
}

// While it lives, the calling thread may do in a stream capture what a capture otherwise forbids:
// a kernel's first use loads it, which may allocate, and that first use may be in a capture. Of no
// effect outside a capture, and on other threads.
class LoadingAllowed {
 public:
  LoadingAllowed() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~LoadingAllowed() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  LoadingAllowed(const LoadingAllowed&) = delete;
  LoadingAllowed& operator=(const LoadingAllowed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;  // then the one that was
};

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, int threads, int64_t shared,
                   cudaStream_t stream, A&&... args) {
  constexpr int64_t kAlwaysAllowed = 48 << 10;
  const LoadingAllowed loading_allowed;
  if (shared > kAlwaysAllowed) {
    // Always the device's most, not what this launch needs: the attribute is the kernel's, and
    // another thread may be about to launch it with more.
    Device device;
    cudaError_t error = query(device);
    if (error == cudaSuccess) {
      error =
          cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes);
    }
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
}

inline dim3 grid_of(int64_t x, int64_t y = 1) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

// Whether rows of `size` elements of T may be read V at a time, and each base pointer too.
template <class T>
bool packs_fit(int64_t size, int V, std::initializer_list<const void*> bases) {
  bool fits = size % V == 0;
  for (const void* base : bases) fits = fits && reinterpret_cast<uintptr_t>(base) % 16 == 0;
  return fits;
}

// The scale where it is read as a row is, else null: one element for all may lie anywhere.
template <ScaleKind kScale>
const void* scale_rows(const DecoderParams& p) {
  return kScale == ScaleKind::kShared && p.scale_stride == 0 ? nullptr : p.scale;
}

template <class T>
struct Type {
  using type = T;
};

// f(Type<T>) with the type that `dtype` names.
template <class F>
cudaError_t with_dtype(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(Type<double>());
    case DType::kBFloat16:
      return f(Type<BFloat16>());
    case DType::kFloat16:
      return f(Type<Half>());
    default:
      return f(Type<float>());
  }
}

}  // namespace dvae::cuda
