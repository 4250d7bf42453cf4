#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace dvae::cpu {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "base";
  }
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas{Isa::kBase};
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  // These ask CPUID and whether the operating system saves the wider registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
#if !defined(DVAE_WITHOUT_AVX2)
    isas.push_back(Isa::kAvx2);
#endif
#if !defined(DVAE_WITHOUT_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      isas.push_back(Isa::kAvx512);
    }
#endif
  }
#endif
  return isas;
}

Isa parse_isa(const std::string& name) {
  std::string known;
  for (const Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    known += known.empty() ? "" : ", ";
    known += isa_name(isa);
  }
  throw std::runtime_error("DVAE_FAST_ISA must be one of the levels this build and CPU have (" +
                           known + "), got '" + name + "'");
}

Isa isa_in_use() {
  static const Isa isa = [] {
    const char* wanted = std::getenv("DVAE_FAST_ISA");
    return wanted != nullptr && *wanted != '\0' ? parse_isa(wanted) : available_isas().back();
  }();
  return isa;
}

}  // namespace dvae::cpu
