// Kernels for AVX-512.
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header, of its undefined registers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define DVAE_ISA isa_avx512
#include "target_avx512.h"
#if DVAE_HAVE_TARGET
#include "kernels.inl"
#else
#include "kernels.h"
#endif
#include "target_end.h"

namespace dvae::cpu {

#if DVAE_HAVE_TARGET
const Kernels* kernels_avx512() { return &kTable; }
#else
const Kernels* kernels_avx512() { return nullptr; }
#endif

}  // namespace dvae::cpu
