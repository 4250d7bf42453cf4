// The operators' kernels of one backend by their names. Schemas and the fallback are registered by
// dvae_fast/ops.py.
#pragma once

#include <torch/csrc/stable/library.h>

#include <utility>

#include "operators.h"

namespace dvae::glue {

template <auto kOperator, const Backend& (*kBackend)()>
struct On;
template <class R, class... A, R (*kOperator)(const Backend&, A...), const Backend& (*kBackend)()>
struct On<kOperator, kBackend> {
  static R run(A... arguments) { return kOperator(kBackend(), arguments...); }

  // Without the last argument, a mask.
  template <class Indices>
  struct Unmasked;
  template <size_t... I>
  struct Unmasked<std::index_sequence<I...>> {
    static R run(std::tuple_element_t<I, std::tuple<A...>>... arguments) {
      return kOperator(kBackend(), arguments..., std::nullopt);
    }
  };
  using Whole = Unmasked<std::make_index_sequence<sizeof...(A) - 1>>;
};

struct Kernel {
  const char* name;
  void (*run)(StableIValue*, uint64_t, uint64_t);
};

// An operator as torch calls it.
template <auto kOperator, const Backend& (*kBackend)()>
constexpr auto kBoxed = &TORCH_BOX((&On<kOperator, kBackend>::run));
template <auto kOperator, const Backend& (*kBackend)()>
constexpr auto kWhole = &TORCH_BOX((&On<kOperator, kBackend>::Whole::run));

template <const Backend& (*kOn)()>
constexpr Kernel kKernels[] = {
    {"corrupt", kBoxed<&corrupt, kOn>},
    {"corrupt_backward", kBoxed<&corrupt_backward, kOn>},
    {"corrupt_backward_std", kBoxed<&corrupt_backward_std, kOn>},
    {"sample_latent", kBoxed<&sample_latent, kOn>},
    {"sample_latent_backward", kBoxed<&sample_latent_backward, kOn>},
    {"latent_log_ratio", kBoxed<&latent_log_ratio, kOn>},
    {"latent_log_ratio_backward", kBoxed<&latent_log_ratio_backward, kOn>},
    {"mixture_log_ratio", kBoxed<&mixture_log_ratio, kOn>},
    {"mixture_log_ratio_backward", kBoxed<&mixture_log_ratio_backward, kOn>},
    {"log_weights", kWhole<&log_weights, kOn>},
    {"log_weights_backward", kWhole<&log_weights_backward, kOn>},
    {"iwae", kWhole<&iwae, kOn>},
    {"iwae_", kWhole<&iwae_inplace, kOn>},
    {"rescale_", kBoxed<&rescale_inplace, kOn>},
    {"softplus", kBoxed<&softplus, kOn>},
    {"softplus_backward", kBoxed<&softplus_backward, kOn>},
    {"logmeanexp", kBoxed<&logmeanexp, kOn>},
    {"logmeanexp_backward", kBoxed<&logmeanexp_backward, kOn>},
    {"lse_update", kBoxed<&lse_update, kOn>},
    {"linear_log_weights", kWhole<&linear_log_weights, kOn>},
    {"linear_log_weights_backward", kWhole<&linear_log_weights_backward, kOn>},
    // Those of which a mask may leave out elements.
    {"masked_log_weights", kBoxed<&log_weights, kOn>},
    {"masked_log_weights_backward", kBoxed<&log_weights_backward, kOn>},
    {"masked_iwae", kBoxed<&iwae, kOn>},
    {"masked_iwae_", kBoxed<&iwae_inplace, kOn>},
    {"masked_linear_log_weights", kBoxed<&linear_log_weights, kOn>},
    {"masked_linear_log_weights_backward", kBoxed<&linear_log_weights_backward, kOn>},
};

}  // namespace dvae::glue
