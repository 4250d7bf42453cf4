// Kernels for AVX2.
#define DVAE_ISA isa_avx2
#include "target_avx2.h"
#if DVAE_HAVE_TARGET
#include "kernels.inl"
#else
#include "kernels.h"
#endif
#include "target_end.h"

namespace dvae::cpu {

#if DVAE_HAVE_TARGET
const Kernels* kernels_avx2() { return &kTable; }
#else
const Kernels* kernels_avx2() { return nullptr; }
#endif

}  // namespace dvae::cpu
