#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "products.h"

#if DVAE_HAVE_BF16
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dvae::cpu {
namespace {

#if DVAE_HAVE_BF16
// Of Linux's asm/prctl.h, and the component of the processor's state that AMX's tiles are.
constexpr int kGetSupported = 0x1021, kRequestPermission = 0x1023, kTileData = 18;

[[maybe_unused]] bool has_avx512_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1) != 0;
}

// Whose AVX-512 BF16 multiplies half as fast as its float32: it is for the sake of AMX.
bool is_intel() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0, &a, &b, &c, &d) != 0 && b == 0x756E6547;  // "Genu"
}

[[maybe_unused]] bool has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool bf16 = (d >> 22 & 1) != 0, tile = (d >> 24 & 1) != 0;
  unsigned long supported = 0;
  return bf16 && tile && syscall(SYS_arch_prctl, kGetSupported, &supported) == 0 &&
         (supported >> kTileData & 1) != 0;
}
#endif

Isa best_isa() {
  const Isa best = available_isas().back();
#if DVAE_HAVE_BF16
  if (best == Isa::kAvx512Bf16 && is_intel()) return Isa::kAvx512;
#endif
  return best;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512Bf16:
      return "avx512bf16";
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
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return isas;
#if !defined(DVAE_WITHOUT_AVX2)
  isas.push_back(Isa::kAvx2);
#endif
#if !defined(DVAE_WITHOUT_AVX512)
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return isas;
  }
  isas.push_back(Isa::kAvx512);
#if DVAE_HAVE_BF16
  if (!has_avx512_bf16()) return isas;
  isas.push_back(Isa::kAvx512Bf16);
  if (has_amx_bf16()) isas.push_back(Isa::kAmx);
#endif
#endif
#endif
  return isas;
}

std::vector<Isa> vector_isas() {
  std::vector<Isa> isas = available_isas();
  while (isas.back() > Isa::kAvx512) isas.pop_back();
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

Isa isa_in_use() { return std::min(level_in_use(), Isa::kAvx512); }

Isa level_in_use() {
  static const Isa isa = [] {
    const char* wanted = std::getenv("DVAE_FAST_ISA");
    return wanted != nullptr && *wanted != '\0' ? parse_isa(wanted) : best_isa();
  }();
  return isa;
}

bool allow_amx() {
#if DVAE_HAVE_BF16
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
#else
  return false;
#endif
}

}  // namespace dvae::cpu
