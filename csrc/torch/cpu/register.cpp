// The CPU's kernels serve from the moment the library is loaded.
#include "operators.h"

#include "../register.inl"

STABLE_TORCH_LIBRARY_IMPL(dvae_fast, CPU, m) {
  using namespace dvae::glue;
  for (const Kernel& kernel : kKernels) m.impl(kernel.name, kernel.run);
  m.impl("mlp_log_weights", TORCH_BOX(&mlp_log_weights_cpu));
}
