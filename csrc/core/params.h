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

enum class CorruptionKind : int {
  kIdentity = 0,
  kMasking = 1,
  kSaltAndPepper = 2,
  kBitFlip = 3,
  kGaussian = 4
};

// Every likelihood: X(its struct in likelihoods.h, its name in the operators, more).
#define DVAE_LIKELIHOOD_LIST(X, more)                  \
  X(Bernoulli, "bernoulli", more)                      \
  X(Gaussian, "gaussian", more)                        \
  X(DiscretisedLogistic, "discretised_logistic", more) \
  X(NegativeBinomial, "negative_binomial", more)

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

struct NoiseParams {
  int64_t seed;
  uint32_t first_example;
  uint32_t first_sample;
};

// x (B, D) → out (M, B, D); or grad (M, B, D) → out (B, D).
struct CorruptParams {
  const void* in;      // T
  void* out;           // T
  // Per element: thresholds of rate and of rate · salt, or the standard deviation (A). Either a
  // value for each of D rounded up to whole blocks (table_stride = 64) or one block that serves
  // them all (table_stride = 0).
  const int32_t* hit;
  const int32_t* one;
  const void* std;
  int64_t table_stride;
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

// params (N, K, D), x (B, D), log_ratio and log_w (N, K).
struct LogWeightParams {
  const void* params;     // T
  const void* bias;       // T, D elements, or null: added to params
  const void* scale;      // kShared: A, laid out as CorruptParams::std; kFull: T, (N, K, D)
  int64_t scale_stride;   // 64 or 0, for kShared
  double log_scale_sum;   // Σ_d log scale, for kShared; else 0
  const void* x;          // A
  const void* log_ratio;  // A, or null for 0
  void* log_w;            // A; output of the forward, and of the fused loss's first sweep
  const void* grad;       // A; upstream gradient per row
  void* grad_params;      // T; may be params itself
  void* grad_scale;       // T, kFull
  void* bound;            // A, (N,)
  double multiplier;      // of the gradient, in the fused loss
  int64_t first_row;      // rows below are row − first_row in params (tiles), not in the others
  int64_t rows, examples, samples, size;
};

// A dense layer, f(in Wᵀ + b), of a few rows: in (rows, inputs), out (rows, outputs). W (outputs,
// inputs) and b come in panels, as the kernel that packs them leaves them.
struct DenseParams {
  const void* in;      // A
  const void* panels;  // A
  void* out;           // A
  int64_t rows, inputs, outputs;
  Activation activation;
};

// log_w (N, K) → bound (N,); or with grad (N,) → grad_log_w (N, K).
struct LogMeanExpParams {
  const void* log_w;  // A
  void* bound;        // A
  const void* grad;   // A
  void* grad_log_w;   // A
  int64_t rows, samples;
};

}  // namespace dvae
