#include "operators.h"

#define DVAE_DISPATCH_KEY CPU
#define DVAE_MORE_OPERATORS(m) m.impl("mlp_log_weights", TORCH_BOX(&mlp_log_weights_cpu))
#include "../register.inl"
