// The operators on the CPU.
#pragma once

#define DVAE_OP(name) name##_cpu
#include "../operators.inl"
