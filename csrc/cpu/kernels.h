// The CPU kernels as a table of functions over ranges of rows; one table per ISA.
//
// Threading is the caller's: any split of the range gives the same result.
#pragma once

#include "../core/params.h"

namespace dvae::cpu {

// CorruptParams with what is read beside an element in blocks: a value for each of D rounded up to
// whole blocks of 64 (table_stride = 64), or one block that serves them all (table_stride = 0).
struct CorruptTables : CorruptParams {
  const int32_t* hit;  // threshold of rate
  const int32_t* one;  // threshold of rate · salt
  const void* stds;    // A
  int64_t table_stride;
};

// Of so many classes a vector is of them, of fewer of variables: what is the faster way.
constexpr int64_t kManyClasses = 48;

// Elements of an example's one-hot variables in vectors, and of one group of logits.
inline int64_t categorical_room(int64_t size, int64_t classes) {
  constexpr int64_t kWhole = 16;
  const auto rounded = [](int64_t n) { return (n + kWhole - 1) / kWhole * kWhole; };
  const int64_t variables = size / classes;
  if (classes >= kManyClasses) return (variables + 1) * rounded(classes);
  return (rounded(variables) + kWhole) * classes;
}

struct Kernels {
  // Rows (copy, example); examples; and blocks of 64 elements.
  void (*corrupt[kDTypes])(const CorruptTables&, int64_t begin, int64_t end);
  void (*corrupt_backward[kDTypes])(const CorruptTables&, int64_t begin, int64_t end);
  // out: double, whole blocks: Σ grad · noise per element
  void (*corrupt_backward_std[kDTypes])(const CorruptTables&, double* out, int64_t begin,
                                        int64_t end);

  // LatentParams. Rows (copy, example, sample) forward, (copy, example) backward.
  void (*sample_latent[kDTypes])(const LatentParams&, int64_t begin, int64_t end);
  void (*sample_latent_backward[kDTypes])(const LatentParams&, int64_t begin, int64_t end);
  void (*latent_log_ratio[kDTypes])(const LatentParams&, int64_t begin, int64_t end);
  void (*latent_log_ratio_backward[kDTypes])(const LatentParams&, int64_t begin, int64_t end);

  // MixtureParams. Rows (example, sample) forward, examples backward.
  void (*mixture_log_ratio[kDTypes])(const MixtureParams&, int64_t begin, int64_t end);
  void (*mixture_log_ratio_backward[kDTypes])(const MixtureParams&, int64_t begin, int64_t end);

  // Rows (n, k). A shared scale lies in blocks, as CorruptTables' stds. scale_sum: null, or double
  // of whole blocks, to which a shared scale's gradient is added.
  void (*log_weights[kLikelihoods][kDTypes])(const LogWeightParams&, ScaleKind, int64_t begin,
                                             int64_t end);
  void (*log_weights_backward[kLikelihoods][kDTypes])(const LogWeightGradParams&, ScaleKind,
                                                      double* scale_sum, int64_t begin,
                                                      int64_t end);
  // The fused loss over rows n.
  void (*iwae[kLikelihoods][kDTypes])(const IwaeParams&, ScaleKind, double* scale_sum,
                                      int64_t begin, int64_t end);
  // Its three steps, for when there are fewer examples than threads: rows (n, k), n, (n, k).
  void (*iwae_sweep[kLikelihoods][kDTypes])(const IwaeParams&, ScaleKind, int64_t begin,
                                            int64_t end);
  void (*iwae_normalise[kDTypes])(const IwaeParams&, int64_t begin, int64_t end);
  void (*iwae_scale[kLikelihoods][kDTypes])(const IwaeParams&, ScaleKind, double* scale_sum,
                                            int64_t begin, int64_t end);

  // Of a zero-inflated negative binomial, float32 and float64: rows (n, k), with a mask always.
  void (*zero_inflated[kDTypes])(const ZeroInflatedParams&, ScaleKind, int64_t begin, int64_t end);
  void (*zero_inflated_backward[kDTypes])(const ZeroInflatedParams&, ScaleKind, double* scale_sum,
                                          int64_t begin, int64_t end);
  // Of one-hot variables, float32 and float64: rows (n, k), with a mask or without; the data of
  // p are of `categorical_room` elements.
  void (*categorical[kDTypes])(const CategoricalParams&, int64_t begin, int64_t end);
  void (*categorical_backward[kDTypes])(const CategoricalParams&, int64_t begin, int64_t end);

  // Rows n.
  void (*logmeanexp[kDTypes])(const LogMeanExpParams&, int64_t begin, int64_t end);
  void (*logmeanexp_backward[kDTypes])(const LogMeanExpParams&, int64_t begin, int64_t end);
  // state (N, 5) double, log_w (N, K) A → out (N, 5)
  void (*lse_update[kDTypes])(const double* state, const void* log_w, int64_t samples, double* out,
                              int64_t begin, int64_t end);

  // Dense layers of float32 and float64; null for other dtypes. weight (outputs, inputs) and bias,
  // or null, into panels of `panel` columns: (inputs + 1) · outputs elements, rounded up to them.
  int64_t panel[kDTypes];
  void (*pack_panels[kDTypes])(const void* weight, const void* bias, int64_t inputs,
                               int64_t outputs, void* panels);
  void (*dense[kDTypes])(const DenseParams&);
  // Of the transpose, without a bias: columns [0, outputs) of weight (inputs, stride).
  void (*pack_transposed[kDTypes])(const void* weight, int64_t stride, int64_t inputs,
                                   int64_t outputs, void* panels);
  void (*add_outer[kDTypes])(const OuterParams&);
  // grad *= f'(a) for n elements, of y = f(a); to += from.
  void (*activation_backward[kDTypes])(Activation, void* grad, const void* made, int64_t n);
  void (*add_to[kDTypes])(const void* from, void* to, int64_t n);
  // Of n elements; returns Σ grad², without the decay.
  double (*adam[kDTypes])(const AdamParams&, const void* grad, const AdamState&, int64_t n);
  // Rows (copy, example): −KL as log_ratio; and its gradient, added to grad_mean and grad_log_var.
  void (*divergence[kDTypes])(const LatentParams&, int64_t begin, int64_t end);
  void (*divergence_backward[kDTypes])(const LatentParams&, int64_t begin, int64_t end);

  // Elements [begin, end): log(1 + e^x), and grad · σ(x) from y = log(1 + e^x).
  void (*softplus[kDTypes])(const void* in, void* out, int64_t begin, int64_t end);
  void (*softplus_backward[kDTypes])(const void* grad, const void* out, void* to, int64_t begin,
                                     int64_t end);
  // grad[i] *= factor for elements [begin, end)
  void (*scale_by[kDTypes])(void* grad, double factor, int64_t begin, int64_t end);
  // out[j] += Σ_r in[r, j] for columns [begin, end)
  void (*add_column_sums[kDTypes])(const void* in, int64_t rows, int64_t columns, double* out,
                                   int64_t begin, int64_t end);

  // For masked.h. A row's observed elements one after another, and back with zeros elsewhere: `to`
  // of the one and `from` of the other have room for `size` elements.
  void (*compact[kDTypes])(const void* from, const uint8_t* observed, int64_t size, void* to);
  void (*spread[kDTypes])(const void* from, const uint8_t* observed, int64_t size, int64_t count,
                          void* to);
  int64_t (*count_observed)(const uint8_t* observed, int64_t size);
  double (*sum[kDTypes])(const void* values, int64_t size);
  // Which kernels over rows take a mask of their own.
  bool takes_mask[kDTypes];
};

// One per ISA compiled in; null where the compiler or architecture has none.
const Kernels* kernels_base();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();

// The table for the ISA in use (isa.h). Throws std::runtime_error if DVAE_FAST_ISA is wrong.
const Kernels& kernels();

}  // namespace dvae::cpu
