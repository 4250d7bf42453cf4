// Annotations that let one formula serve host and device, and one source serve several ISAs.
#pragma once

#include <cstdint>

// Keyed on __CUDACC__, not __CUDA_ARCH__: nvcc's host pass must see the same declarations.
#if defined(__CUDACC__)
#define DVAE_HD __host__ __device__ __forceinline__
#else
#define DVAE_HD inline __attribute__((always_inline))
#endif

// Unrolls the loop that follows, of at most 16 rounds, completely. Each compiler warns of the
// other's spelling, and nvcc's host pass of both.
#if defined(__CUDA_ARCH__)
#define DVAE_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define DVAE_UNROLL
#elif defined(__clang__)
#define DVAE_UNROLL _Pragma("unroll 16")
#else
#define DVAE_UNROLL _Pragma("GCC unroll 16")
#endif

// Each ISA's translation unit defines DVAE_ISA before including anything. The inline namespace
// keeps the linker from merging an AVX-512 copy of a function into code that runs everywhere.
#ifndef DVAE_ISA
#define DVAE_ISA isa_any
#endif

#define DVAE_BEGIN_CORE \
  namespace dvae {      \
  inline namespace DVAE_ISA {
#define DVAE_END_CORE \
  }                   \
  }

DVAE_BEGIN_CORE

// The bits of `from` as another type of the same size.
template <class To, class From>
DVAE_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Compiler builtins: std::numeric_limits' functions are the host's alone under nvcc.
template <class A>
DVAE_HD constexpr A infinity() {
  return static_cast<A>(__builtin_huge_val());
}

// The largest finite value.
template <class A>
DVAE_HD constexpr A largest() {
  return sizeof(A) == 8 ? static_cast<A>(__DBL_MAX__) : static_cast<A>(__FLT_MAX__);
}

template <class A>
DVAE_HD constexpr A quiet_nan() {
  return static_cast<A>(__builtin_nan(""));
}

DVAE_END_CORE
