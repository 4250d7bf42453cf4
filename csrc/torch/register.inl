// The kernels of one device by their operators' names, for register.cpp there. Schemas and the
// fallback are registered by dvae_fast/ops.py.
#include <torch/csrc/stable/library.h>

namespace dvae::glue {
namespace {

struct Kernel {
  const char* name;
  void (*run)(StableIValue*, uint64_t, uint64_t);
};

constexpr Kernel kKernels[] = {
    {"corrupt", TORCH_BOX(&DVAE_OP(corrupt))},
    {"corrupt_backward", TORCH_BOX(&DVAE_OP(corrupt_backward))},
    {"corrupt_backward_std", TORCH_BOX(&DVAE_OP(corrupt_backward_std))},
    {"sample_latent", TORCH_BOX(&DVAE_OP(sample_latent))},
    {"sample_latent_backward", TORCH_BOX(&DVAE_OP(sample_latent_backward))},
    {"latent_log_ratio", TORCH_BOX(&DVAE_OP(latent_log_ratio))},
    {"latent_log_ratio_backward", TORCH_BOX(&DVAE_OP(latent_log_ratio_backward))},
    {"mixture_log_ratio", TORCH_BOX(&DVAE_OP(mixture_log_ratio))},
    {"mixture_log_ratio_backward", TORCH_BOX(&DVAE_OP(mixture_log_ratio_backward))},
    {"log_weights", TORCH_BOX(&DVAE_OP(log_weights))},
    {"log_weights_backward", TORCH_BOX(&DVAE_OP(log_weights_backward))},
    {"iwae", TORCH_BOX(&DVAE_OP(iwae))},
    {"iwae_", TORCH_BOX(&DVAE_OP(iwae_inplace))},
    {"rescale_", TORCH_BOX(&DVAE_OP(rescale_inplace))},
    {"softplus", TORCH_BOX(&DVAE_OP(softplus))},
    {"softplus_backward", TORCH_BOX(&DVAE_OP(softplus_backward))},
    {"logmeanexp", TORCH_BOX(&DVAE_OP(logmeanexp))},
    {"logmeanexp_backward", TORCH_BOX(&DVAE_OP(logmeanexp_backward))},
    {"lse_update", TORCH_BOX(&DVAE_OP(lse_update))},
    {"lse_merge", TORCH_BOX(&DVAE_OP(lse_merge))},
    {"linear_log_weights", TORCH_BOX(&DVAE_OP(linear_log_weights))},
    {"linear_log_weights_backward", TORCH_BOX(&DVAE_OP(linear_log_weights_backward))},
};

}  // namespace
}  // namespace dvae::glue
