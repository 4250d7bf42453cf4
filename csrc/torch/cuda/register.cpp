#include "operators.h"

#define DVAE_DISPATCH_KEY CUDA
#include "../register.inl"
