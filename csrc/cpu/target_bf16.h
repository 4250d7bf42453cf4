// Begins code compiled for AVX-512 with AVX-512 BF16 and AMX; target_end.h ends it. Standard
// headers come first, so that their inline functions, which the linker merges across files, are
// compiled for the baseline.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>

#if DVAE_HAVE_BF16
#include <immintrin.h>
#endif

#define DVAE_VECTOR_BYTES 64
#define DVAE_HAVE_TARGET DVAE_HAVE_BF16

#if DVAE_HAVE_BF16 && defined(__clang__)
#pragma clang attribute push(                                                                 \
    __attribute__((                                                                           \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma"))), \
    apply_to = function)
#elif DVAE_HAVE_BF16
#pragma GCC push_options
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,prefer-vector-width=512")
#endif
