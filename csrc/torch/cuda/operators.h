// The operators on CUDA.
#pragma once

#define DVAE_OP(name) name##_cuda
#include "../operators.inl"
