// Registers the kernels of one device, for register.cpp there. Schemas and the fallback are
// registered by dvae_fast/ops.py.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_IMPL(dvae_fast, DVAE_DISPATCH_KEY, m) {
  using namespace dvae::glue;
  m.impl("corrupt", TORCH_BOX(&DVAE_OP(corrupt)));
  m.impl("corrupt_backward", TORCH_BOX(&DVAE_OP(corrupt_backward)));
  m.impl("corrupt_backward_std", TORCH_BOX(&DVAE_OP(corrupt_backward_std)));
  m.impl("sample_latent", TORCH_BOX(&DVAE_OP(sample_latent)));
  m.impl("sample_latent_backward", TORCH_BOX(&DVAE_OP(sample_latent_backward)));
  m.impl("latent_log_ratio", TORCH_BOX(&DVAE_OP(latent_log_ratio)));
  m.impl("latent_log_ratio_backward", TORCH_BOX(&DVAE_OP(latent_log_ratio_backward)));
  m.impl("mixture_log_ratio", TORCH_BOX(&DVAE_OP(mixture_log_ratio)));
  m.impl("mixture_log_ratio_backward", TORCH_BOX(&DVAE_OP(mixture_log_ratio_backward)));
  m.impl("log_weights", TORCH_BOX(&DVAE_OP(log_weights)));
  m.impl("log_weights_backward", TORCH_BOX(&DVAE_OP(log_weights_backward)));
  m.impl("iwae", TORCH_BOX(&DVAE_OP(iwae)));
  m.impl("iwae_", TORCH_BOX(&DVAE_OP(iwae_inplace)));
  m.impl("rescale_", TORCH_BOX(&DVAE_OP(rescale_inplace)));
  m.impl("softplus", TORCH_BOX(&DVAE_OP(softplus)));
  m.impl("softplus_backward", TORCH_BOX(&DVAE_OP(softplus_backward)));
  m.impl("logmeanexp", TORCH_BOX(&DVAE_OP(logmeanexp)));
  m.impl("logmeanexp_backward", TORCH_BOX(&DVAE_OP(logmeanexp_backward)));
  m.impl("lse_update", TORCH_BOX(&DVAE_OP(lse_update)));
  m.impl("lse_merge", TORCH_BOX(&DVAE_OP(lse_merge)));
  m.impl("linear_log_weights", TORCH_BOX(&DVAE_OP(linear_log_weights)));
  m.impl("linear_log_weights_backward", TORCH_BOX(&DVAE_OP(linear_log_weights_backward)));
#ifdef DVAE_MORE_OPERATORS
  DVAE_MORE_OPERATORS(m);
#endif
}
