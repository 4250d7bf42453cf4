// The CPU's kernels serve from the moment the library is loaded.
#include "../register.h"

STABLE_TORCH_LIBRARY_IMPL(dvae_fast, CPU, m) {
  using namespace dvae::glue;
  for (const Kernel& kernel : kKernels<cpu_backend>) m.impl(kernel.name, kernel.run);
  // Of the CPU only: elsewhere the layers run one after the other.
  m.impl("mlp_log_weights", (kBoxed<&mlp_log_weights, cpu_backend>));
}
