// The functions of csrc/core over arrays, compiled as the kernels are: once for each ISA, in loops
// that the compiler vectorises.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace dvae::test {

using Unary = void (*)(const float* in, float* out, int64_t n);

struct MathTable {
  Unary exp, exp_nonpositive, log, log1p, softplus, sigmoid, log1p_unit, one_minus_exp, tanh, sqrt,
      abs;
  void (*log_uniform)(const uint32_t* words, float* out, int64_t n);
  void (*sincos_turn)(const uint32_t* v, float* s, float* c, int64_t n);
  void (*normal_pair)(const uint32_t* w0, const uint32_t* w1, float* n0, float* n1, int64_t n);
  void (*normal_pair_double)(const uint32_t* w0, const uint32_t* w1, double* n0, double* n1,
                             int64_t n);
  void (*threshold)(const float* p, int32_t* out, int64_t n);
  void (*load_half)(const uint16_t* bits, float* out, int64_t n);
  void (*load_bfloat16)(const uint16_t* bits, float* out, int64_t n);
  void (*store_half)(const float* in, uint16_t* bits, int64_t n);
  void (*store_bfloat16)(const float* in, uint16_t* bits, int64_t n);
  void (*read_half)(const uint16_t* bits, float* out, int64_t n);
  void (*read_bfloat16)(const uint16_t* bits, float* out, int64_t n);
  void (*made_half)(const float* in, uint16_t* bits, int64_t n);
  void (*made_bfloat16)(const float* in, uint16_t* bits, int64_t n);
};

const MathTable* math_base();
const MathTable* math_avx2();
const MathTable* math_avx512();

inline const MathTable& math_table(cpu::Isa isa) {
  switch (isa) {
    case cpu::Isa::kAvx512:
      return *math_avx512();
    case cpu::Isa::kAvx2:
      return *math_avx2();
    default:
      return *math_base();
  }
}

inline std::string name_of(cpu::Isa isa) { return cpu::isa_name(isa); }

}  // namespace dvae::test
