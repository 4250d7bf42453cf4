// The operators, for any backend. Schemas and shapes are in dvae_fast/ops.py and reference.py.
#pragma once

#include <string>
#include <tuple>

#include "backend.h"

namespace dvae::glue {

using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Tensor corrupt(const Backend&, In x, Name kind, In rate, MaybeIn salt, In seed, int64_t copies,
               int64_t first_example, int64_t first_copy);
Tensor corrupt_backward(const Backend&, In grad, Name kind, In rate, MaybeIn salt, In seed,
                        int64_t first_example, int64_t first_copy);
Tensor corrupt_backward_std(const Backend&, In grad, In std, In seed, int64_t first_example,
                            int64_t first_copy);

Two sample_latent(const Backend&, In mean, In log_var, int64_t k, In seed, int64_t first_example,
                  int64_t first_sample);
Two sample_latent_backward(const Backend&, MaybeIn grad_z, MaybeIn grad_log_ratio, In mean,
                           In log_var, int64_t k, In seed, int64_t first_example,
                           int64_t first_sample);
Tensor latent_log_ratio(const Backend&, In z, In mean, In log_var);
Three latent_log_ratio_backward(const Backend&, In grad, In z, In mean, In log_var);

Two mixture_log_ratio(const Backend&, In z, In mean, In log_var);
Three mixture_log_ratio_backward(const Backend&, In grad, In weights, In z, In mean, In log_var);

// mask (examples, D) of bool, or null: which elements count.
Tensor log_weights(const Backend&, In params, MaybeIn scale, In x, In log_ratio, Name likelihood,
                   MaybeIn mask);
Two log_weights_backward(const Backend&, In grad, In params, MaybeIn scale, In x, Name likelihood,
                         MaybeIn mask);
Four iwae(const Backend&, In params, MaybeIn scale, In x, In log_ratio, Name likelihood,
          double multiplier, MaybeIn mask);
Three iwae_inplace(const Backend&, In params, MaybeIn scale, In x, In log_ratio, Name likelihood,
                   double multiplier, MaybeIn mask);
void rescale_inplace(const Backend&, In grad, In factor);

Tensor linear_log_weights(const Backend&, In hidden, In weight, MaybeIn bias, MaybeIn scale, In x,
                          In log_ratio, Name likelihood, MaybeIn mask);
Four linear_log_weights_backward(const Backend&, In grad, In hidden, In weight, MaybeIn bias,
                                 MaybeIn scale, In x, Name likelihood, MaybeIn mask);
Tensor mlp_log_weights(const Backend&, In z, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& biases, Name activation, MaybeIn scale, In x,
                       In log_ratio, Name likelihood, MaybeIn mask);

Tensor softplus(const Backend&, In x);
Tensor softplus_backward(const Backend&, In grad, In out);

Tensor logmeanexp(const Backend&, In log_w);
Tensor logmeanexp_backward(const Backend&, In grad, In log_w);
Tensor lse_update(const Backend&, In state, In log_w);

}  // namespace dvae::glue
