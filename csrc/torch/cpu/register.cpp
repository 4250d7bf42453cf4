#include "operators.h"

#define DVAE_DISPATCH_KEY CPU
#include "../register.inl"
