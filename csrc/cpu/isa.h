// Which instruction set the kernels run on: the best the CPU has, or DVAE_FAST_ISA.
#pragma once

#include <string>
#include <vector>

namespace dvae::cpu {

// The last two are AVX-512 with instructions for products of bfloat16 matrices (products.h).
enum class Isa : int { kBase = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };

const char* isa_name(Isa isa);

// Levels compiled in that this CPU can run, lowest first.
std::vector<Isa> available_isas();

// Of these the ones that differ in more than products of bfloat16 matrices.
std::vector<Isa> vector_isas();

// The level called `name`. Throws std::runtime_error naming the levels available.
Isa parse_isa(const std::string& name);

// The level in use, decided once. Throws if DVAE_FAST_ISA names none that is available.
Isa level_in_use();

// The one of its kernels (kernels.h): at most kAvx512.
Isa isa_in_use();

// Asks Linux for AMX's registers, which a process gets on request; false where it gets none.
bool allow_amx();

}  // namespace dvae::cpu
