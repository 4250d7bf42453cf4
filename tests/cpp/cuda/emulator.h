// Runs CUDA kernels on the CPU, so that their logic is tested on machines without a GPU.
//
// Found in place of <cuda_runtime.h>, it makes .cu files C++. Blocks run one after another; the
// threads of a block are fibers, of which one runs until it ends or waits at a __syncthreads or a
// shuffle. It is an emulator of the rules, not of the speed, and stricter than a GPU:
//
//  - Blocks, warps and lanes run in an order that a test chooses, each warp as far as it can before
//    the next. What a missing barrier, or a block that depends on another, leaves to chance gives
//    another result in another order.
//  - A block's shared memory is of exactly the size asked for, and begins as NaN (0xFF or 0x7F).
//  - A barrier that some threads of the block miss, or reach at another line, throws; so does a
//    shuffle that is not of all lanes of a warp, all at the same line.
//  - A launch is refused where a GPU would refuse it: sizes of grid, block and shared memory.
//
// It knows nothing of the order of memory accesses, caches, registers or time.
#pragma once

#define DVAE_CUDA_EMULATOR 1

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// --- the runtime's types ----------------------------------------------------------------------

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_in = 1, unsigned y_in = 1, unsigned z_in = 1)
      : x(x_in), y(y_in), z(z_in) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;

enum cudaDeviceAttr {
  cudaDevAttrMaxGridDimX = 5,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2,
};

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// --- the emulator -----------------------------------------------------------------------------

namespace emulator {

enum class Order { kForward, kBackward, kShuffled };

// The device, and the order its threads run in.
struct Settings {
  int multiprocessors = 3;
  int max_grid = 0x7FFFFFFF;
  int shared_bytes = 227 << 10;
  int shared_total = 228 << 10;
  int shared_reserved = 1 << 10;
  int cache_bytes = 1 << 20;
  Order order = Order::kForward;
  uint64_t seed = 0;  // of Order::kShuffled
};
inline Settings settings;

// What a kernel did wrong.
struct Error : std::logic_error {
  using std::logic_error::logic_error;
};

// Counts of what ran, so that a test can tell which way a launch took.
struct Counts {
  int64_t launches = 0, blocks = 0, barriers = 0, shuffles = 0;
  size_t shared_bytes = 0;  // of the last launch
  unsigned threads = 0;  // of a block of the last launch
};
inline Counts counts;

// What the calling thread may do while a stream captures.
inline thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

unsigned char* shared_bytes();
void barrier(int line);
// Gives `bytes` to the warp and returns what `lane` gave.
void exchange(unsigned mask, int lane, const void* give, void* take, size_t bytes, int line);
cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel,
                const std::function<void()>& thread);
cudaError_t allow_shared(const void* kernel, int bytes);
int lane();

template <class T>
T shuffle(unsigned mask, T value, int from, int line) {
  T taken;
  exchange(mask, from, &value, &taken, sizeof(T), line);
  return taken;
}

}  // namespace emulator

// Of the thread that runs.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

#define __syncthreads() ::emulator::barrier(__LINE__)
#define __shfl_xor_sync(mask, value, lanes) \
  ::emulator::shuffle(mask, value, ::emulator::lane() ^ (lanes), __LINE__)

template <class T>
void __stwb(T* to, T value) {
  *to = value;
}

// --- the runtime's functions ------------------------------------------------------------------

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                     ? "no error"
         : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                  : "invalid argument";
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxGridDimX:
      *value = emulator::settings.max_grid;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = emulator::settings.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = emulator::settings.cache_bytes;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulator::settings.shared_total;
      return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = emulator::settings.shared_reserved;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulator::settings.shared_bytes;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, emulator::capture_mode);
  return cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  return emulator::allow_shared(kernel, bytes);
}

inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  __builtin_memset(data, value, bytes);
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               A&&... args) {
  // Copies, as a launch makes them.
  const std::tuple<P...> held(std::forward<A>(args)...);
  return emulator::run(*config, reinterpret_cast<const void*>(kernel),
                       [&] { std::apply(kernel, held); });
}
