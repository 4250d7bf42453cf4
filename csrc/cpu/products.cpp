#include "products.h"

namespace dvae::cpu {

Isa bf16_isa() {
  const Isa isa = level_in_use();
  if (isa == Isa::kAmx) return allow_amx() ? isa : Isa::kBase;
  return isa == Isa::kAvx512Bf16 ? isa : Isa::kBase;
}

const Bf16Products* bf16_products() {
  switch (bf16_isa()) {
    case Isa::kAmx:
      return bf16_products_amx();
    case Isa::kAvx512Bf16:
      return bf16_products_avx512();
    default:
      return nullptr;
  }
}

}  // namespace dvae::cpu
