// The loss of an autoencoder of perceptrons and all its gradients in one pass: each worker takes
// examples through corruption, encoder, sampling, decoder, likelihood and bound, and back, in its
// own cache; no layer's output of a whole batch is ever held.
//
// Source of the bounds: Burda et al. (arXiv 1509.00519), Im et al. (arXiv 1511.06406).
#pragma once

#include <vector>

#include "buffer.h"
#include "kernels.h"
#include "products.h"
#include "rows.h"

namespace dvae::cpu {

// A layer, of T: weight (outputs, inputs), bias (outputs) or null, and where their gradients go: to
// places of their own, or into an update of the layer.
struct StepLayer {
  const void* weight;
  const void* bias;
  void* grad_weight;  // null where the layer is updated instead
  void* grad_bias;
  AdamState of_weight, of_bias;
  int64_t inputs, outputs;
};

struct StepParams {
  // The last of the encoder has 2 Z outputs, mean and log-variance; that of the decoder D.
  std::vector<StepLayer> encoder, decoder;
  Activation activation;  // after every layer but those two
  DType dtype;  // float32 or float64
  const CorruptTables* corruption;  // null: the data as they are
  const void* x;  // T (examples, data)
  int64_t copies, examples, samples, data, latent;  // M, B, K, D, Z
  NoiseParams noise;
  LikelihoodKind likelihood;  // one without a scale
  bool outside;  // K outside the logarithm
  bool analytic;  // the divergence is exact
  bool drops_score;  // log q's own dependence on the encoder is dropped
  bool doubly;  // the path's coefficients are squared weights
  double kl_weight;  // of the divergence in the gradient; 1 unless outside
  const AdamParams* update;  // of the layers; or null
  const Bf16Products* bf16;  // of float32, rounded to bfloat16 where they are multiplied; or null
};

class Step {
 public:
  // What it is told must outlive it. `workers` >= 1, and no more than `encodings`.
  Step(const StepParams&, int64_t workers);
  ~Step();
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  // Rows that are encoded.
  static int64_t encodings(const StepParams&);
  // Multiply-adds of one way through, about.
  static int64_t work(const StepParams&);

  // First weights are packed, in any split of panels [0, panels()); then each worker runs once;
  // then each adds up its share of the weights' gradients, or updates the weights by it; then it is
  // finished.
  int64_t panels() const { return panels_; }
  void pack(int64_t begin, int64_t end);
  void run(int64_t worker);
  void reduce(int64_t worker);
  // The same of biases; returns the loss.
  double finish();
  // Σ of the squares of an update's gradients.
  double squares() const { return squares_; }

 private:
  struct Worker;
  // A matrix in panels: which of all, and where they lie; and, of bfloat16, the bias.
  struct Packed {
    int64_t first = 0, count = 0, at = 0, bias_at = 0;
    char* data = nullptr;
    float* bias = nullptr;
  };
  struct Layer : StepLayer {
    Packed forward, backward;  // W, and Wᵀ where a gradient goes on below
    int64_t first_element, first_output;
  };

  void lay_out(const std::vector<StepLayer>&, bool ends, std::vector<Layer>&);
  void place(Packed&, int64_t inputs, int64_t outputs);
  void pack(const Layer&, int64_t begin, int64_t end);
  void pack_bf16(const Layer&, int64_t begin, int64_t end);
  double update(const AdamState&, int64_t first, const char* grad, int64_t n) const;
  int64_t gradient_bytes() const;  // of a worker
  double update_by_block(int64_t begin, int64_t end, int64_t worker);
  char* weight_gradient(const Layer&, int64_t worker) const;
  const std::vector<Layer>& network(int i) const { return i == 0 ? encoder_ : decoder_; }

  const StepParams& p_;
  const Kernels& kernels_;
  const int dtype_;
  const int64_t element_, workers_;
  std::vector<Layer> encoder_, decoder_;
  int64_t panels_ = 0, elements_ = 0, outputs_ = 0, packed_ = 0;  // the last in bytes
  int64_t tile_, part_;  // examples that are encoded, and decoded, at a time
  // Of an update, where every worker has one tile of one part: no gradient of weights is made
  // before all rows are through, and then a block of each, of all rows, which is used at once.
  bool at_the_end_ = false;
  Buffer memory_;
  int64_t memory_size_ = 0;
  char* gradients_ = nullptr;  // of each worker; the first one's may be the results
  char* workspaces_ = nullptr;
  int64_t workspace_ = 0;
  std::vector<double> biases_;  // Σ of each worker
  std::vector<double> bounds_;
  std::vector<double> squared_;  // Σ of each worker
  double squares_ = 0;
};

// How an optimizer steps, and what it is told: see reference.adam_.
enum class AdamRule { kAdam, kDecoupled, kBurda };
struct AdamOptions {
  double rate, beta1, beta2, epsilon, decay;
  AdamRule rule;
  double factor;
};
// What `step`, the first being 1, makes of them.
AdamParams adam_step(double step, const AdamOptions&);
// A step of elements [begin, end), by a gradient that is there.
void update(const AdamParams&, DType, const AdamState&, const void* grad, int64_t begin,
            int64_t end);

struct StepResult {
  double loss;
  double norm;  // of an update's gradients
};
// The whole of it by no more than `threads`. `share` calls the body on disjoint parts of [0, n), of
// `part` each.
StepResult run_step(const StepParams&, int64_t threads,
                    const std::function<void(int64_t n, int64_t part, const Part& body)>& share);

}  // namespace dvae::cpu
