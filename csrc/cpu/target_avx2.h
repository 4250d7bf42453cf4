// Begins code compiled for AVX2; target_end.h ends it. Standard headers come first, so that their
// inline functions, which the linker merges across files, are compiled for the baseline.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define DVAE_VECTOR_BYTES 32

#if defined(DVAE_WITHOUT_AVX2)
#define DVAE_HAVE_TARGET 0
#elif defined(__x86_64__) && defined(__clang__)
#define DVAE_HAVE_TARGET 1
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#elif defined(__x86_64__) && defined(__GNUC__)
#define DVAE_HAVE_TARGET 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,prefer-vector-width=256")
#else
#define DVAE_HAVE_TARGET 0
#endif
