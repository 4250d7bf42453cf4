// The operators on CUDA; schemas and shapes are in dvae_fast/ops.py and reference.py.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "../tensor.h"

namespace dvae::glue {

Tensor corrupt_cuda(const Tensor& x, const std::string& kind, const Tensor& rate,
                    const std::optional<Tensor>& salt, const Tensor& seed, int64_t copies,
                    int64_t first_example, int64_t first_copy);
Tensor corrupt_backward_cuda(const Tensor& grad, const std::string& kind, const Tensor& rate,
                             const std::optional<Tensor>& salt, const Tensor& seed,
                             int64_t first_example, int64_t first_copy);
Tensor corrupt_backward_std_cuda(const Tensor& grad, const Tensor& std, const Tensor& seed,
                                 int64_t first_example, int64_t first_copy);

std::tuple<Tensor, Tensor> sample_latent_cuda(const Tensor& mean, const Tensor& log_var, int64_t k,
                                              const Tensor& seed, int64_t first_example,
                                              int64_t first_sample);
std::tuple<Tensor, Tensor> sample_latent_backward_cuda(const std::optional<Tensor>& grad_z,
                                                       const std::optional<Tensor>& grad_log_ratio,
                                                       const Tensor& mean, const Tensor& log_var,
                                                       int64_t k, const Tensor& seed,
                                                       int64_t first_example, int64_t first_sample);
Tensor latent_log_ratio_cuda(const Tensor& z, const Tensor& mean, const Tensor& log_var);
std::tuple<Tensor, Tensor, Tensor> latent_log_ratio_backward_cuda(const Tensor& grad,
                                                                  const Tensor& z,
                                                                  const Tensor& mean,
                                                                  const Tensor& log_var);

Tensor log_weights_cuda(const Tensor& params, const std::optional<Tensor>& scale, const Tensor& x,
                        const Tensor& log_ratio, const std::string& likelihood);
std::tuple<Tensor, Tensor> log_weights_backward_cuda(const Tensor& grad, const Tensor& params,
                                                     const std::optional<Tensor>& scale,
                                                     const Tensor& x,
                                                     const std::string& likelihood);
std::tuple<Tensor, Tensor, Tensor, Tensor> iwae_cuda(const Tensor& params,
                                                     const std::optional<Tensor>& scale,
                                                     const Tensor& x, const Tensor& log_ratio,
                                                     const std::string& likelihood,
                                                     double multiplier);
std::tuple<Tensor, Tensor, Tensor> iwae_inplace_cuda(const Tensor& params,
                                                     const std::optional<Tensor>& scale,
                                                     const Tensor& x, const Tensor& log_ratio,
                                                     const std::string& likelihood,
                                                     double multiplier);
void rescale_inplace_cuda(const Tensor& grad, const Tensor& factor);

Tensor softplus_cuda(const Tensor& x);
Tensor softplus_backward_cuda(const Tensor& grad, const Tensor& out);

Tensor logmeanexp_cuda(const Tensor& log_w);
Tensor logmeanexp_backward_cuda(const Tensor& grad, const Tensor& log_w);
Tensor lse_update_cuda(const Tensor& state, const Tensor& log_w);
Tensor lse_merge_cuda(const Tensor& a, const Tensor& b);

Tensor linear_log_weights_cuda(const Tensor& hidden, const Tensor& weight,
                               const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& scale, const Tensor& x,
                               const Tensor& log_ratio, const std::string& likelihood);
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_log_weights_backward_cuda(
    const Tensor& grad, const Tensor& hidden, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& scale, const Tensor& x,
    const std::string& likelihood);

}  // namespace dvae::glue
