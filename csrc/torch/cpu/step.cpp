// The one-pass loss of an autoencoder of perceptrons: arguments, threads, results.
#include "../../cpu/step.h"

#include <algorithm>
#include <cmath>

#include "../../core/likelihoods.h"
#include "../ops/corruption.h"
#include "rows.h"
#include "step_operator.h"

namespace dvae::glue {
namespace {

// Weights and biases in turn, a bias of no elements for none.
struct Network {
  Tensors held;
  std::vector<cpu::StepLayer> layers;

  Network(const Backend& on, const char* name, const Tensors& tensors, int64_t inputs,
          int64_t outputs, In like) {
    STD_TORCH_CHECK(!tensors.empty() && tensors.size() % 2 == 0, name,
                    " must be weights and biases in turn, got ", tensors.size(), " tensors");
    for (size_t i = 0; i < tensors.size(); i += 2) {
      on.check(tensors[i], name, {-1, inputs}, like.scalar_type(), like);
      const Tensor weight = packed(tensors[i]), bias = packed(tensors[i + 1]);
      const bool biased = bias.numel() != 0;
      const int64_t size = weight.sizes()[0];
      STD_TORCH_CHECK(size > 0 && inputs > 0, name, " must have layers of some size");
      if (biased) on.check(bias, name, {size}, like.scalar_type(), like);
      cpu::StepLayer layer{};
      layer.weight = weight.const_data_ptr();
      layer.bias = biased ? bias.const_data_ptr() : nullptr;
      layer.inputs = inputs;
      layer.outputs = size;
      layers.push_back(layer);
      for (const Tensor& t : {weight, bias}) held.push_back(t);
      inputs = size;
    }
    STD_TORCH_CHECK(inputs == outputs, name, " must end in ", outputs, " outputs, got ", inputs);
  }
};

Tensor scalar(In like, double value) {
  const Tensor t = empty(like, {}, like.scalar_type());
  with_data(t, [&](auto* out) { store(*out, static_cast<decltype(load(*out))>(value)); });
  return t;
}

float count(In step) { return *static_cast<const float*>(step.const_data_ptr()); }

// How many an optimizer has made of all its parameters.
double steps_done(const Tensors& steps) {
  STD_TORCH_CHECK(!steps.empty(), "steps must be one or more");
  for (const Tensor& t : steps) {
    check_dtype(t, "steps", ScalarType::Float);
    STD_TORCH_CHECK(t.numel() == 1, "steps must be of one element, got shape ", shape_of(t));
    STD_TORCH_CHECK(count(t) == count(steps[0]), "steps must all be alike, got ", count(steps[0]),
                    " and ", count(t));
  }
  return count(steps[0]);
}

// The loss, and the norm of what gradients an update had; `place` says where a network's go.
template <class F>
std::tuple<Tensor, Tensor> pass(DVAE_PASS_ARGUMENTS, const AdamParams* update, const F& place) {
  const Backend& on = cpu_backend();
  check_shape(x_in, "x", {-1, -1});
  STD_TORCH_CHECK(x_in.scalar_type() == sum_type(x_in), "x must be float32 or float64");
  const Tensor x = packed(x_in);
  const int64_t examples = x.sizes()[0], data = x.sizes()[1];
  STD_TORCH_CHECK(
      examples > 0 && copies > 0 && samples > 0 && !decoder.empty() && decoder[0].dim() == 2,
      "examples, copies, samples and layers must be >= 1");
  const int64_t latent = decoder[0].sizes()[1];
  Network q(on, "encoder", encoder, data, 2 * latent, x),
      p_of_x(on, "decoder", decoder, latent, data, x);
  place(q);
  place(p_of_x);

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
  p.update = update;
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
  if (workers > 1 || update != nullptr) {
    shared_out(workers, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) step.reduce(worker);
    });
  }
  const double loss = step.finish();
  return {scalar(x, loss), scalar(x, std::sqrt(step.squares()))};
}

}  // namespace

std::tuple<Tensor, Tensors> mlp_loss(DVAE_PASS_ARGUMENTS) {
  Tensors gradients;
  const auto place = [&](Network& network) {
    for (size_t i = 0; i < network.layers.size(); ++i) {
      const Tensor of_weight = new_like(network.held[2 * i]);
      const Tensor of_bias = new_like(network.held[2 * i + 1]);
      network.layers[i].grad_weight = of_weight.mutable_data_ptr();
      network.layers[i].grad_bias = of_bias.mutable_data_ptr();
      for (const Tensor& t : {of_weight, of_bias}) gradients.push_back(t);
    }
  };
  const Tensor loss = std::get<0>(pass(DVAE_PASS_NAMES, nullptr, place));
  return {loss, gradients};
}

std::tuple<Tensor, Tensor> mlp_step_inplace(DVAE_PASS_ARGUMENTS, const Tensors& means,
                                            const Tensors& squares, const Tensors& steps,
                                            double learning_rate, double beta1, double beta2,
                                            double epsilon, double weight_decay, bool decoupled) {
  const size_t count = encoder.size() + decoder.size();
  STD_TORCH_CHECK(means.size() == count && squares.size() == count,
                  "means and squares must be as many as the layers' tensors, ", count, ", got ",
                  means.size(), " and ", squares.size());
  const double step = steps_done(steps) + 1;
  AdamParams adam{};
  adam.rate = learning_rate / (1 - std::pow(beta1, step));
  adam.beta1 = beta1;
  adam.beta2 = beta2;
  adam.root_scale = 1 / std::sqrt(1 - std::pow(beta2, step));
  adam.epsilon = epsilon;
  adam.decay = decoupled ? 0 : weight_decay;
  adam.kept = decoupled ? 1 - learning_rate * weight_decay : 1;
  size_t next = 0;
  const auto state = [&](In parameter) {
    const Tensor &mean = means[next], &square = squares[next];
    ++next;
    for (const Tensor* t : {&mean, &square}) {
      STD_TORCH_CHECK(t->scalar_type() == parameter.scalar_type() &&
                          t->numel() == parameter.numel() && t->is_contiguous(),
                      "means and squares must be as the layers' tensors, and contiguous");
    }
    return AdamState{parameter.mutable_data_ptr(), mean.mutable_data_ptr(),
                     square.mutable_data_ptr()};
  };
  const auto place = [&](Network& network) {
    for (size_t i = 0; i < network.layers.size(); ++i) {
      network.layers[i].of_weight = state(network.held[2 * i]);
      network.layers[i].of_bias = state(network.held[2 * i + 1]);
    }
  };
  for (const Tensors* tensors : {&encoder, &decoder}) {
    for (const Tensor& t : *tensors) {
      STD_TORCH_CHECK(t.is_contiguous(), "layers that are updated must be contiguous");
    }
  }
  const auto results = pass(DVAE_PASS_NAMES, &adam, place);
  for (const Tensor& t : steps) *static_cast<float*>(t.mutable_data_ptr()) += 1;
  return results;
}

}  // namespace dvae::glue
