// The CUDA kernels of every operator. Schemas and the fallback are registered by dvae_fast/ops.py.
#include <torch/csrc/stable/library.h>

#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(dvae_fast, CUDA, m) {
  using namespace dvae::glue;
  m.impl("corrupt", TORCH_BOX(&corrupt_cuda));
  m.impl("corrupt_backward", TORCH_BOX(&corrupt_backward_cuda));
  m.impl("corrupt_backward_std", TORCH_BOX(&corrupt_backward_std_cuda));
  m.impl("sample_latent", TORCH_BOX(&sample_latent_cuda));
  m.impl("sample_latent_backward", TORCH_BOX(&sample_latent_backward_cuda));
  m.impl("latent_log_ratio", TORCH_BOX(&latent_log_ratio_cuda));
  m.impl("latent_log_ratio_backward", TORCH_BOX(&latent_log_ratio_backward_cuda));
  m.impl("log_weights", TORCH_BOX(&log_weights_cuda));
  m.impl("log_weights_backward", TORCH_BOX(&log_weights_backward_cuda));
  m.impl("iwae", TORCH_BOX(&iwae_cuda));
  m.impl("iwae_", TORCH_BOX(&iwae_inplace_cuda));
  m.impl("rescale_", TORCH_BOX(&rescale_inplace_cuda));
  m.impl("softplus", TORCH_BOX(&softplus_cuda));
  m.impl("softplus_backward", TORCH_BOX(&softplus_backward_cuda));
  m.impl("logmeanexp", TORCH_BOX(&logmeanexp_cuda));
  m.impl("logmeanexp_backward", TORCH_BOX(&logmeanexp_backward_cuda));
  m.impl("lse_update", TORCH_BOX(&lse_update_cuda));
  m.impl("lse_merge", TORCH_BOX(&lse_merge_cuda));
  m.impl("linear_log_weights", TORCH_BOX(&linear_log_weights_cuda));
  m.impl("linear_log_weights_backward", TORCH_BOX(&linear_log_weights_backward_cuda));
}
