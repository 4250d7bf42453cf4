// Kernels for the compiler's baseline (SSE2 on x86-64, NEON on arm64), and the choice of table.
#include <new>

#define DVAE_ISA isa_base
#include "kernels.inl"

#include "isa.h"

namespace dvae::cpu {

const Kernels* kernels_base() { return &kTable; }

const Kernels& kernels() {
  static const Kernels* const table = [] {
    switch (isa_in_use()) {
      case Isa::kAvx512:
        return kernels_avx512();
      case Isa::kAvx2:
        return kernels_avx2();
      default:
        return kernels_base();
    }
  }();
  return *table;
}

}  // namespace dvae::cpu
