// What every kernel uses: index helpers and a block's shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define DVAE_DEVICE __device__ __forceinline__

namespace dvae::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
// Threads of a block, where nothing else decides. Kernels are bound to (kThreads, 1): left to its
// own choice of occupancy, ptxas spills a few bytes to reach a round number of registers.
constexpr int kThreads = 256;

// The block's dynamic shared memory, all the shared memory there is: 16-byte aligned.
DVAE_DEVICE unsigned char* shared_bytes() {
#if defined(DVAE_CUDA_EMULATOR)
  return emulator::shared_bytes();
#else
  extern __shared__ __align__(16) unsigned char dvae_shared_bytes[];
  return dvae_shared_bytes;
#endif
}
template <class T>
DVAE_DEVICE T* shared_at(int64_t byte = 0) {
  return reinterpret_cast<T*>(shared_bytes() + byte);
}

DVAE_DEVICE int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
DVAE_DEVICE int64_t item_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

struct Quotient {
  int64_t quotient, remainder;
};

// n / by for n >= 0, by > 0: in 32 bits where both fit, a fifth of the instructions.
DVAE_DEVICE Quotient divide(int64_t n, int64_t by) {
  if (((n | by) >> 32) == 0) {
    const uint32_t q = static_cast<uint32_t>(n) / static_cast<uint32_t>(by);
    return {q, static_cast<uint32_t>(n) - q * static_cast<uint32_t>(by)};
  }
  const int64_t q = n / by;
  return {q, n - q * by};
}

DVAE_DEVICE int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
DVAE_DEVICE int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
DVAE_DEVICE const T* at(const void* base, int64_t offset) {
  return static_cast<const T*>(base) + offset;
}
template <class T>
DVAE_DEVICE T* at(void* base, int64_t offset) {
  return static_cast<T*>(base) + offset;
}

}  // namespace dvae::cuda
