// The one-pass loss of an autoencoder of perceptrons: arguments, threads, results.
#include "../../cpu/step.h"

#include <algorithm>

#include "../../core/likelihoods.h"
#include "../ops/corruption.h"
#include "rows.h"
#include "step_operator.h"

namespace dvae::glue {
namespace {

// Weights and biases in turn, a bias of no elements for none; gradients in the same order.
struct Network {
  std::vector<Tensor> held;
  std::vector<cpu::StepLayer> layers;

  Network(const Backend& on, const char* name, const std::vector<Tensor>& tensors, int64_t inputs,
          int64_t outputs, In like, std::vector<Tensor>& gradients) {
    STD_TORCH_CHECK(!tensors.empty() && tensors.size() % 2 == 0, name,
                    " must be weights and biases in turn, got ", tensors.size(), " tensors");
    for (size_t i = 0; i < tensors.size(); i += 2) {
      on.check(tensors[i], name, {-1, inputs}, like.scalar_type(), like);
      const Tensor weight = packed(tensors[i]), bias = packed(tensors[i + 1]);
      const bool biased = bias.numel() != 0;
      const int64_t size = weight.sizes()[0];
      STD_TORCH_CHECK(size > 0 && inputs > 0, name, " must have layers of some size");
      if (biased) on.check(bias, name, {size}, like.scalar_type(), like);
      const Tensor grad_weight = new_like(weight), grad_bias = new_like(bias);
      layers.push_back({weight.const_data_ptr(), biased ? bias.const_data_ptr() : nullptr,
                        grad_weight.mutable_data_ptr(),
                        biased ? grad_bias.mutable_data_ptr() : nullptr, inputs, size});
      for (const Tensor& t : {weight, bias}) held.push_back(t);
      for (const Tensor& t : {grad_weight, grad_bias}) gradients.push_back(t);
      inputs = size;
    }
    STD_TORCH_CHECK(inputs == outputs, name, " must end in ", outputs, " outputs, got ", inputs);
  }
};

}  // namespace

std::tuple<Tensor, std::vector<Tensor>> mlp_loss(
    In x_in, Name corruption, In rate, MaybeIn salt, In seed, int64_t copies, int64_t samples,
    int64_t first_example, const std::vector<Tensor>& encoder, const std::vector<Tensor>& decoder,
    Name activation, Name likelihood, bool outside, bool analytic, bool drops_score, bool doubly,
    double kl_weight, bool bfloat16) {
  const Backend& on = cpu_backend();
  check_shape(x_in, "x", {-1, -1});
  STD_TORCH_CHECK(x_in.scalar_type() == sum_type(x_in), "x must be float32 or float64");
  const Tensor x = packed(x_in);
  const int64_t examples = x.sizes()[0], data = x.sizes()[1];
  STD_TORCH_CHECK(
      examples > 0 && copies > 0 && samples > 0 && !decoder.empty() && decoder[0].dim() == 2,
      "examples, copies, samples and layers must be >= 1");
  const int64_t latent = decoder[0].sizes()[1];
  std::vector<Tensor> gradients;
  const Network q(on, "encoder", encoder, data, 2 * latent, x, gradients);
  const Network p_of_x(on, "decoder", decoder, latent, data, x, gradients);

  const CorruptionKind kind = corruption_of(corruption);
  Corruption c(on, kind, rate, salt, seed, x, copies, first_example, 0);
  c.params.in = x.const_data_ptr();
  const DType dtype = dtype_of(x, "x");
  const cpu::CorruptionTables tables(dtype, c.params);
  cpu::StepParams p{};
  p.encoder = q.layers;
  p.decoder = p_of_x.layers;
  p.activation = activation_of(activation);
  p.dtype = dtype;
  p.corruption = kind == CorruptionKind::kIdentity ? nullptr : &tables.params;
  p.x = x.const_data_ptr();
  p.copies = copies;
  p.examples = examples;
  p.samples = samples;
  p.data = data;
  p.latent = latent;
  p.noise = c.params.noise;
  p.likelihood = likelihood_of(likelihood);
  STD_TORCH_CHECK(!has_scale(p.likelihood), "likelihood must have no scale, got ", likelihood);
  p.outside = outside;
  p.analytic = analytic;
  p.drops_score = drops_score;
  p.doubly = doubly;
  p.kl_weight = kl_weight;
  if (bfloat16 && dtype == DType::kFloat32) p.bf16 = cpu::bf16_products();

  const int64_t most =
      std::min<int64_t>(torch::stable::get_num_threads(), cpu::Step::work(p) / (4 * kGrain) + 1);
  const int64_t workers = std::clamp<int64_t>(most, 1, cpu::Step::encodings(p));
  cpu::Step step(p, workers);
  // Of one worker each: a part for each thread.
  const auto shared_out = [&](int64_t n, const auto& body) {
    if (workers == 1) return body(int64_t{0}, n);
    torch::stable::parallel_for(0, n, (n + workers - 1) / workers, body);
  };
  shared_out(step.panels(), [&](int64_t begin, int64_t end) { step.pack(begin, end); });
  shared_out(workers, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) step.run(worker);
  });
  if (workers > 1) {
    shared_out(step.elements(), [&](int64_t begin, int64_t end) { step.reduce(begin, end); });
  }
  const Tensor loss = empty(x, {}, x.scalar_type());
  const double value = step.finish();
  with_data(loss, [&](auto* out) { store(*out, static_cast<decltype(load(*out))>(value)); });
  return {loss, gradients};
}

}  // namespace dvae::glue
