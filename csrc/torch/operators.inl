// The operators of one device, for operators.h there, which names its functions by DVAE_OP(name).
// Schemas and shapes are in dvae_fast/ops.py and reference.py.
#include <optional>
#include <string>
#include <tuple>

#include "tensor.h"

namespace dvae::glue {

Tensor DVAE_OP(corrupt)(const Tensor& x, const std::string& kind, const Tensor& rate,
                        const std::optional<Tensor>& salt, const Tensor& seed, int64_t copies,
                        int64_t first_example, int64_t first_copy);
Tensor DVAE_OP(corrupt_backward)(const Tensor& grad, const std::string& kind, const Tensor& rate,
                                 const std::optional<Tensor>& salt, const Tensor& seed,
                                 int64_t first_example, int64_t first_copy);
Tensor DVAE_OP(corrupt_backward_std)(const Tensor& grad, const Tensor& std, const Tensor& seed,
                                     int64_t first_example, int64_t first_copy);

std::tuple<Tensor, Tensor> DVAE_OP(sample_latent)(const Tensor& mean, const Tensor& log_var,
                                                  int64_t k, const Tensor& seed,
                                                  int64_t first_example, int64_t first_sample);
std::tuple<Tensor, Tensor> DVAE_OP(sample_latent_backward)(
    const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_log_ratio,
    const Tensor& mean, const Tensor& log_var, int64_t k, const Tensor& seed, int64_t first_example,
    int64_t first_sample);
Tensor DVAE_OP(latent_log_ratio)(const Tensor& z, const Tensor& mean, const Tensor& log_var);
std::tuple<Tensor, Tensor, Tensor> DVAE_OP(latent_log_ratio_backward)(const Tensor& grad,
                                                                      const Tensor& z,
                                                                      const Tensor& mean,
                                                                      const Tensor& log_var);

std::tuple<Tensor, Tensor> DVAE_OP(mixture_log_ratio)(const Tensor& z, const Tensor& mean,
                                                      const Tensor& log_var);
std::tuple<Tensor, Tensor, Tensor> DVAE_OP(mixture_log_ratio_backward)(const Tensor& grad,
                                                                       const Tensor& weights,
                                                                       const Tensor& z,
                                                                       const Tensor& mean,
                                                                       const Tensor& log_var);

Tensor DVAE_OP(log_weights)(const Tensor& params, const std::optional<Tensor>& scale,
                            const Tensor& x, const Tensor& log_ratio,
                            const std::string& likelihood);
std::tuple<Tensor, Tensor> DVAE_OP(log_weights_backward)(const Tensor& grad, const Tensor& params,
                                                         const std::optional<Tensor>& scale,
                                                         const Tensor& x,
                                                         const std::string& likelihood);
std::tuple<Tensor, Tensor, Tensor, Tensor> DVAE_OP(iwae)(const Tensor& params,
                                                         const std::optional<Tensor>& scale,
                                                         const Tensor& x, const Tensor& log_ratio,
                                                         const std::string& likelihood,
                                                         double multiplier);
std::tuple<Tensor, Tensor, Tensor> DVAE_OP(iwae_inplace)(const Tensor& params,
                                                         const std::optional<Tensor>& scale,
                                                         const Tensor& x, const Tensor& log_ratio,
                                                         const std::string& likelihood,
                                                         double multiplier);
void DVAE_OP(rescale_inplace)(const Tensor& grad, const Tensor& factor);

Tensor DVAE_OP(softplus)(const Tensor& x);
Tensor DVAE_OP(softplus_backward)(const Tensor& grad, const Tensor& out);

Tensor DVAE_OP(logmeanexp)(const Tensor& log_w);
Tensor DVAE_OP(logmeanexp_backward)(const Tensor& grad, const Tensor& log_w);
Tensor DVAE_OP(lse_update)(const Tensor& state, const Tensor& log_w);
Tensor DVAE_OP(lse_merge)(const Tensor& a, const Tensor& b);

Tensor DVAE_OP(linear_log_weights)(const Tensor& hidden, const Tensor& weight,
                                   const std::optional<Tensor>& bias,
                                   const std::optional<Tensor>& scale, const Tensor& x,
                                   const Tensor& log_ratio, const std::string& likelihood);
std::tuple<Tensor, Tensor, Tensor, Tensor> DVAE_OP(linear_log_weights_backward)(
    const Tensor& grad, const Tensor& hidden, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& scale, const Tensor& x,
    const std::string& likelihood);

}  // namespace dvae::glue
