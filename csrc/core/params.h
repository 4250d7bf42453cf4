// What a kernel is told: plain structs of pointers and sizes, the same for every backend.
//
// All tensors are contiguous. B examples, M corruptions, K samples, Z latent and D data
// dimensions; N = M·B rows, of which row n belongs to example n % B and copy n / B. T is the
// tensor's dtype, A its accumulation dtype (float64 for float64, else float32).
#pragma once

#include <cstdint>

// Not in an ISA's namespace: these types pass between translation units.
namespace dvae {

enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
constexpr int kDTypes = 4;

enum class CorruptionKind : int;  // corruptions.h

// Every likelihood: X(its struct in likelihoods.h, its name in the operators, more).
#define DVAE_LIKELIHOOD_LIST(X, more)                  \
  X(Bernoulli, "bernoulli", more)                      \
  X(Gaussian, "gaussian", more)                        \
  X(DiscretisedLogistic, "discretised_logistic", more) \
  X(NegativeBinomial, "negative_binomial", more)       \
  X(Poisson, "poisson", more)                          \
  X(Laplace, "laplace", more)                          \
  X(ContinuousBernoulli, "continuous_bernoulli", more) \
  X(BernoulliProbabilities, "bernoulli_probabilities", more)

#define DVAE_KIND(L, name, more) k##L,
enum class LikelihoodKind : int { DVAE_LIKELIHOOD_LIST(DVAE_KIND, ) };
#undef DVAE_KIND

#define DVAE_NAME(L, name, more) name,
constexpr const char* kLikelihoodNames[] = {DVAE_LIKELIHOOD_LIST(DVAE_NAME, )};
#undef DVAE_NAME
constexpr int kLikelihoods = sizeof(kLikelihoodNames) / sizeof(kLikelihoodNames[0]);

// What a hidden layer makes of its linear part.
enum class Activation : int { kNone = 0, kSoftplus = 1, kRelu = 2, kTanh = 3 };
constexpr const char* kActivationNames[] = {"none", "softplus", "relu", "tanh"};

// How the scale of a likelihood is laid out: none (Bernoulli), shared by all rows, or one an
// element.
enum class ScaleKind : int { kNone = 0, kShared = 1, kFull = 2 };

// What the numbers of noise follow from, and where: the kernels read the seed themselves.
struct NoiseParams {
  const int64_t* seed;
  uint32_t first_example;
  uint32_t first_sample;
};

// x (B, D) → out (M, B, D); or grad (M, B, D) → out (B, D).
struct CorruptParams {
  const void* in;     // T
  void* out;          // T
  const float* rate;  // 1 or D elements; null for Gaussian noise
  const float* salt;  // 1 or D elements, or null: 0
  const void* std;    // A, of Gaussian noise
  int64_t rate_step;  // of rate and std: 1 if there are D, 0 if one serves all
  int64_t salt_step;
  int64_t copies, examples, size;
  CorruptionKind kind;
  NoiseParams noise;
};

// mean, log_var (M, B, Z), z (M, B, K, Z), log_ratio (M, B, K) and their gradients.
struct LatentParams {
  const void* mean;          // T
  const void* log_var;       // T
  void* z;                   // T; output of sample_latent, input of latent_log_ratio
  void* log_ratio;           // A; output
  const void* grad_z;        // T or null
  const void* grad_log_ratio;  // A or null
  void* grad_z_out;          // T; output of latent_log_ratio's gradient
  void* grad_mean;           // T
  void* grad_log_var;        // T
  int64_t copies, examples, samples, size;
  NoiseParams noise;
};

// z (B, K, Z) under a mixture of M components, mean and log_var (M, B, Z): log_ratio (B, K),
// weights (B, K, M), and their gradients.
struct MixtureParams {
  const void* z;         // T
  const void* mean;      // T
  const void* log_var;   // T
  void* log_ratio;       // A; output
  void* weights;         // A; output of the forward, input of its gradient
  const void* grad;      // A; of log_ratio
  void* grad_z;          // T
  void* grad_mean;       // T
  void* grad_log_var;    // T
  int64_t components, examples, samples, size;
};

// A decoder's outputs, params (N, K, D), and the x (B, D) they are for.
struct DecoderParams {
  const void* params;       // T
  const void* bias;         // T, D elements, or null: added to params, of light likelihoods
  const void* scale;        // kShared: A, as the backend lays it out; kFull: T, (N, K, D)
  int64_t scale_stride;     // of kShared, between elements or blocks; 0: one serves all
  const double* log_scale;  // Σ_d log scale, for kShared where the likelihood has it
  const void* x;            // A
  const uint8_t* seen;      // null, or (seen_examples, D), not 0 where x is known
  int64_t seen_examples;
  const void* row_constants;  // A, with those, laid out as scale: −row_constant of each element
  int64_t first_row;  // row n lies at n − first_row in params (tiles), not in the others
  int64_t rows, examples, samples, size;
};

// log_ratio → log_w, both (N, K).
struct LogWeightParams : DecoderParams {
  const void* log_ratio;  // A, or null for 0
  void* log_w;  // A
};

// grad (N, K) → the gradients of params and of a scale an element.
struct LogWeightGradParams : DecoderParams {
  const void* grad;  // A
  void* grad_params;  // T; may be params itself
  void* grad_scale;  // T, kFull
  double multiplier = 1;  // of grad
};

// For log_ratio → log_w, or for grad → the gradients.
struct EitherWayParams : LogWeightGradParams {
  const void* log_ratio;  // A
  void* log_w;  // A
  void* data;  // A, a thread's own
};

// A zero-inflated negative binomial, whose params are the mean: logits (N, K, D) of a count's being
// zeroed. data: 2 D elements.
struct ZeroInflatedParams : EitherWayParams {
  const void* logits;  // T
  void* grad_logits;  // T
};

// D / classes variables of so many classes, whose logits are the params.
struct CategoricalParams : EitherWayParams {
  int64_t classes;
};

// The fused loss: log_w becomes the normalised weights, which times multiplier are what the
// gradients are of.
struct IwaeParams : LogWeightParams {
  void* bound;  // A, (N,)
  void* grad_params;  // T; may be params itself
  void* grad_scale;  // T, kFull
  double multiplier;
};

// A dense layer, f(in Wᵀ + b), of a few rows: in (rows, inputs), out (rows, outputs). W (outputs,
// inputs) and b come in panels, as the kernel that packs them leaves them.
struct DenseParams {
  const void* in;  // A
  const void* panels;  // A
  void* out;  // A
  int64_t rows, inputs, outputs;
  Activation activation;
};

// to (outputs, inputs) += leftᵀ right, left (rows, outputs), right (rows, inputs), or = of the
// first. May read past the end of right by less than a panel.
struct OuterParams {
  const void* left;  // A
  const void* right;  // A
  void* to;  // A
  int64_t rows, outputs, inputs;
  int64_t left_stride;
  bool first;
};

// A step of Adam (Kingma and Ba, arXiv 1412.6980), its t-th; or of Burda's.
struct AdamParams {
  double rate;  // over 1 − β₁ᵗ; of Burda's times √(1 − β₂ᵗ)
  double beta1, beta2;  // of the running means of gradients and of their squares
  double root_scale;  // 1 / √(1 − β₂ᵗ); of Burda's 1
  double epsilon;
  double factor;  // of the gradient
  double decay;  // times the parameter, added to its gradient
  double kept;  // of the parameter, before the step: less than 1 of a decoupled decay
  bool behind;  // by the means from before this gradient
};
// What it changes, T (n).
struct AdamState {
  void* parameter;
  void* mean;
  void* square;
};

// log_w (N, K) → bound (N,); or with grad (N,) → grad_log_w (N, K).
struct LogMeanExpParams {
  const void* log_w;  // A
  void* bound;  // A
  const void* grad;  // A
  void* grad_log_w;  // A
  int64_t rows, samples;
};

}  // namespace dvae
