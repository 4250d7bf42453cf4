// Which instruction set the kernels run on: the best the CPU has, or DVAE_FAST_ISA.
#pragma once

#include <string>
#include <vector>

namespace dvae::cpu {

enum class Isa : int { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

const char* isa_name(Isa isa);

// Levels compiled in that this CPU can run, lowest first.
std::vector<Isa> available_isas();

// The level called `name`. Throws std::runtime_error naming the levels available.
Isa parse_isa(const std::string& name);

// The level in use, decided once. Throws if DVAE_FAST_ISA names none that is available.
Isa isa_in_use();

}  // namespace dvae::cpu
