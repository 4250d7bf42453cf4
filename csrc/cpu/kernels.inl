// The CPU kernels: plain loops over core's functions, compiled once per ISA.
//
// Included by kernels_<isa>.cpp, which sets the target and defines DVAE_ISA. Inner loops run over
// lanes, each with an accumulator of its own, so that the compiler vectorises them without
// reordering any sum: 16 lanes where a row is summed, a noise block of 64 where columns are.

#include "../core/corruptions.h"
#include "../core/half.h"
#include "../core/latent.h"
#include "../core/likelihoods.h"
#include "../core/logsumexp.h"
#include "../core/math.h"
#include "../core/mean_exp.h"
#include "../core/noise.h"
#include "../core/zero_inflated.h"
#include "dense.h"
#include "kernels.h"
#ifdef DVAE_VECTOR_BYTES
#include "philox_lanes.h"
#endif

// GCC is told that lanes are independent; clang finds out, by a check when run where it must.
#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunknown-pragmas"
#endif

namespace dvae::cpu {
namespace {

constexpr int64_t kTile = kBlock;
constexpr int64_t kSumRows = 64;  // terms of one kind that a single float takes in

// In the order in which they use each other.
// clang-format off
#include "lanes.inl"
#include "noise.inl"
#include "ops/corrupt.inl"
#include "ops/latent.inl"
#include "sixteen.inl"
#include "masks.inl"
#include "rows.inl"
#include "ops/log_weights.inl"
#include "ops/iwae.inl"
#include "ops/logsumexp.inl"
#include "ops/mixture.inl"
#include "by_scale.inl"
#include "ops/zero_inflated.inl"
#include "ops/categorical.inl"
#include "ops/softplus.inl"
#include "ops/dense.inl"
#include "ops/sums.inl"
#include "ops/adam.inl"
#include "ops/compact.inl"
// clang-format on

#define DVAE_DTYPES(f) {f<float>, f<double>, f<BFloat16>, f<Half>}
#define DVAE_DTYPES_OF(L, name, f) {f<L, float>, f<L, double>, f<L, BFloat16>, f<L, Half>},
#define DVAE_LIKELIHOODS(f) {DVAE_LIKELIHOOD_LIST(DVAE_DTYPES_OF, f)}

constexpr Kernels kTable = {
    DVAE_DTYPES(corrupt),
    DVAE_DTYPES(corrupt_backward),
    DVAE_DTYPES(corrupt_backward_std),
    DVAE_DTYPES(sample_latent),
    DVAE_DTYPES(sample_latent_backward),
    DVAE_DTYPES(latent_log_ratio),
    DVAE_DTYPES(latent_log_ratio_backward),
    DVAE_DTYPES(mixture_log_ratio),
    DVAE_DTYPES(mixture_log_ratio_backward),
    DVAE_LIKELIHOODS(log_weights),
    DVAE_LIKELIHOODS(log_weights_backward),
    DVAE_LIKELIHOODS(iwae),
    DVAE_LIKELIHOODS(iwae_sweep),
    DVAE_DTYPES(iwae_normalise),
    DVAE_LIKELIHOODS(iwae_scale),
    {zero_inflated<float>, zero_inflated<double>, nullptr, nullptr},
    {zero_inflated_backward<float>, zero_inflated_backward<double>, nullptr, nullptr},
    {categorical<float>, categorical<double>, nullptr, nullptr},
    {categorical_backward<float>, categorical_backward<double>, nullptr, nullptr},
    DVAE_DTYPES(logmeanexp),
    DVAE_DTYPES(logmeanexp_backward),
    DVAE_DTYPES(lse_update),
    {kPanel<float>, kPanel<double>, 0, 0},
    {pack_panels<float>, pack_panels<double>, nullptr, nullptr},
    {dense<float>, dense<double>, nullptr, nullptr},
    {pack_transposed_panels<float>, pack_transposed_panels<double>, nullptr, nullptr},
    {add_outer<float>, add_outer<double>, nullptr, nullptr},
    {activation_backward<float>, activation_backward<double>, nullptr, nullptr},
    {add_to<float>, add_to<double>, nullptr, nullptr},
    {adam<float>, adam<double>, nullptr, nullptr},
    {divergence<float>, divergence<double>, nullptr, nullptr},
    {divergence_backward<float>, divergence_backward<double>, nullptr, nullptr},
    DVAE_DTYPES(softplus_forward),
    DVAE_DTYPES(softplus_backward),
    DVAE_DTYPES(scale_by),
    DVAE_DTYPES(add_column_sums),
    DVAE_DTYPES(compact),
    DVAE_DTYPES(spread),
    count_observed,
    DVAE_DTYPES(sum_of),
    DVAE_DTYPES(kTakesMask),
};

#undef DVAE_SHORT_LOOP
#undef DVAE_ONE_BY_ONE
#undef DVAE_WITH_SCALE
#undef DVAE_DTYPES
#undef DVAE_DTYPES_OF
#undef DVAE_LIKELIHOODS

}  // namespace
}  // namespace dvae::cpu

#if defined(__clang__)
#pragma clang diagnostic pop
#endif
