// The CPU's kernels serve from the moment the library is loaded.
#include "../register.h"
#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(dvae_fast, CPU, m) {
  using namespace dvae::glue;
  for (const Kernel& kernel : kKernels<cpu_backend>) m.impl(kernel.name, kernel.run);
  // Of the CPU only: elsewhere layers run one by one, and those likelihoods are plain.
  m.impl("mlp_log_weights", (kWhole<&mlp_log_weights, cpu_backend>));
  m.impl("mlp_loss", TORCH_BOX((&mlp_loss)));
  m.impl("mlp_step_", TORCH_BOX((&mlp_step_inplace)));
  m.impl("adam_", TORCH_BOX((&adam_inplace)));
  m.impl("zero_inflated", TORCH_BOX((&zero_inflated)));
  m.impl("zero_inflated_backward", TORCH_BOX((&zero_inflated_backward)));
  m.impl("categorical", TORCH_BOX((&categorical)));
  m.impl("categorical_backward", TORCH_BOX((&categorical_backward)));
  m.impl("masked_mlp_log_weights", (kBoxed<&mlp_log_weights, cpu_backend>));
}
