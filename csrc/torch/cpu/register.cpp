// The CPU kernels of every operator. Schemas and the fallback are registered by dvae_fast/ops.py.
#include <torch/csrc/stable/library.h>

#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(dvae_fast, CPU, m) {
  using namespace dvae::glue;
  m.impl("corrupt", TORCH_BOX(&corrupt_cpu));
  m.impl("corrupt_backward", TORCH_BOX(&corrupt_backward_cpu));
  m.impl("corrupt_backward_std", TORCH_BOX(&corrupt_backward_std_cpu));
  m.impl("sample_latent", TORCH_BOX(&sample_latent_cpu));
  m.impl("sample_latent_backward", TORCH_BOX(&sample_latent_backward_cpu));
  m.impl("latent_log_ratio", TORCH_BOX(&latent_log_ratio_cpu));
  m.impl("latent_log_ratio_backward", TORCH_BOX(&latent_log_ratio_backward_cpu));
  m.impl("log_weights", TORCH_BOX(&log_weights_cpu));
  m.impl("log_weights_backward", TORCH_BOX(&log_weights_backward_cpu));
  m.impl("iwae", TORCH_BOX(&iwae_cpu));
  m.impl("iwae_", TORCH_BOX(&iwae_inplace_cpu));
  m.impl("rescale_", TORCH_BOX(&rescale_inplace_cpu));
  m.impl("softplus", TORCH_BOX(&softplus_cpu));
  m.impl("softplus_backward", TORCH_BOX(&softplus_backward_cpu));
  m.impl("logmeanexp", TORCH_BOX(&logmeanexp_cpu));
  m.impl("logmeanexp_backward", TORCH_BOX(&logmeanexp_backward_cpu));
  m.impl("lse_update", TORCH_BOX(&lse_update_cpu));
  m.impl("lse_merge", TORCH_BOX(&lse_merge_cpu));
  m.impl("linear_log_weights", TORCH_BOX(&linear_log_weights_cpu));
  m.impl("linear_log_weights_backward", TORCH_BOX(&linear_log_weights_backward_cpu));
}
