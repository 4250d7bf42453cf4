// The one-pass loss of an autoencoder of perceptrons: arguments, threads, results.
#include "../../cpu/step.h"

#include "../../core/likelihoods.h"
#include "../ops/corruption.h"
#include "operators.h"
#include "rows.h"

namespace dvae::glue {
namespace {

// Elements that are worth a thread.
constexpr int64_t kElementsOfThread = 32768;

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
      cpu::StepLayer layer{};
      const Tensor weight = read(tensors[i], layer.weight), bias = read(tensors[i + 1], layer.bias);
      const int64_t size = weight.sizes()[0];
      STD_TORCH_CHECK(size > 0 && inputs > 0, name, " must have layers of some size");
      if (bias.numel() != 0) {
        on.check(bias, name, {size}, like.scalar_type(), like);
      } else {
        layer.bias = nullptr;
      }
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
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.numel() == 1,
                    "steps must be float32 of one element, got shape ", shape_of(t));
    STD_TORCH_CHECK(count(t) == count(steps[0]), "steps must all be alike, got ", count(t));
  }
  return count(steps[0]);
}

cpu::AdamRule rule_of(Name name) {
  static constexpr const char* kNames[] = {"adam", "decoupled", "burda"};
  return kind_of<cpu::AdamRule>(name, kNames, "rule must be");
}

void check_like(In t, const char* name, In parameter) {
  check_dtype(t, name, parameter.scalar_type());
  STD_TORCH_CHECK(shape_of(t) == shape_of(parameter), name, " must have the shape of parameters, ",
                  shape_of(parameter), ", got ", shape_of(t));
}
void check_count(const Tensors& tensors, const char* name, const Tensors& parameters) {
  STD_TORCH_CHECK(tensors.size() == parameters.size(), name, " must be as many as parameters, ",
                  parameters.size(), ", got ", tensors.size());
}

// An optimizer's next step of parameters.
struct Update {
  AdamParams adam;
  std::vector<AdamState> states;

  Update(const Tensors& parameters, const Tensors& means, const Tensors& squares,
         const Tensors& steps, const cpu::AdamOptions& options) {
    check_count(means, "means", parameters);
    check_count(squares, "squares", parameters);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const Tensor& p = parameters[i];
      STD_TORCH_CHECK(p.scalar_type() == ScalarType::Float || p.scalar_type() == ScalarType::Double,
                      "parameters must be float32 or float64, got ",
                      torch::headeronly::toString(p.scalar_type()));
      check_like(means[i], "means", p);
      check_like(squares[i], "squares", p);
      STD_TORCH_CHECK(p.is_contiguous() && means[i].is_contiguous() && squares[i].is_contiguous(),
                      "parameters, means and squares must be contiguous, got shape ", shape_of(p),
                      " with strides of another order");
      states.push_back(
          {p.mutable_data_ptr(), means[i].mutable_data_ptr(), squares[i].mutable_data_ptr()});
    }
    adam = cpu::adam_step(steps_done(steps) + 1, options);
  }
};

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
  Network q(on, "encoder", encoder, data, 2 * latent, x);
  Network p_of_x(on, "decoder", decoder, latent, data, x);
  place(q), place(p_of_x);

  const CorruptionKind kind = corruption_of(corruption);
  Corruption c(on, kind, rate, salt, seed, x, copies, first_example, 0);
  c.params.in = x.const_data_ptr();
  const DType dtype = dtype_of(x, "x");
  const cpu::CorruptionTables tables(dtype, c.params);
  const LikelihoodKind made = likelihood_of(likelihood);
  STD_TORCH_CHECK(!has_scale(made), "likelihood must have no scale, got ", likelihood);
  const bool rounded = bfloat16 && dtype == DType::kFloat32;
  // clang-format off
  const cpu::StepParams p{
      q.layers, p_of_x.layers, activation_of(activation), dtype,
      kind == CorruptionKind::kIdentity ? nullptr : &tables.params, x.const_data_ptr(),
      copies, examples, samples, data, latent, c.params.noise, made,
      outside, analytic, drops_score, doubly, kl_weight, update,
      rounded ? cpu::bf16_products() : nullptr};
  // clang-format on
  const auto share = [](int64_t n, int64_t part, const cpu::Part& body) {
    torch::stable::parallel_for(0, n, part, body);
  };
  const auto [loss, norm] = cpu::run_step(p, torch::stable::get_num_threads(), share);
  return {scalar(x, loss), scalar(x, norm)};
}

}  // namespace

std::tuple<Tensor, Tensors> mlp_loss(DVAE_PASS_ARGUMENTS) {
  Tensors gradients;
  const auto place = [&](Network& network) {
    for (size_t i = 0; i < network.layers.size(); ++i) {
      cpu::StepLayer& layer = network.layers[i];
      gradients.push_back(written(new_like(network.held[2 * i]), layer.grad_weight));
      gradients.push_back(written(new_like(network.held[2 * i + 1]), layer.grad_bias));
    }
  };
  return {std::get<0>(pass(DVAE_PASS_NAMES, nullptr, place)), gradients};
}

std::tuple<Tensor, Tensor> mlp_step_inplace(DVAE_PASS_ARGUMENTS, DVAE_ADAM_ARGUMENTS) {
  Tensors layers = encoder;
  layers.insert(layers.end(), decoder.begin(), decoder.end());
  const Update update(layers, means, squares, steps,
                      {learning_rate, beta1, beta2, epsilon, decay, rule_of(rule), factor});
  auto next = update.states.begin();
  const auto place = [&](Network& network) {
    for (cpu::StepLayer& layer : network.layers) {
      layer.of_weight = *next++;
      layer.of_bias = *next++;
    }
  };
  const auto results = pass(DVAE_PASS_NAMES, &update.adam, place);
  for (const Tensor& t : steps) *static_cast<float*>(t.mutable_data_ptr()) += 1;
  return results;
}

void adam_inplace(const Tensors& parameters, const Tensors& grads, DVAE_ADAM_ARGUMENTS) {
  const Update update(parameters, means, squares, steps,
                      {learning_rate, beta1, beta2, epsilon, decay, rule_of(rule), factor});
  check_count(grads, "grads", parameters);
  check_count(steps, "steps", parameters);
  Tensors held;
  for (size_t i = 0; i < grads.size(); ++i) {
    check_like(grads[i], "grads", parameters[i]);
    held.push_back(packed(grads[i]));
  }
  for (size_t i = 0; i < held.size(); ++i) {
    const AdamState& state = update.states[i];
    const void* const grad = held[i].const_data_ptr();
    const DType dtype = dtype_of(held[i], "grads");
    torch::stable::parallel_for(0, held[i].numel(), kElementsOfThread,
                                [&](int64_t begin, int64_t end) {
                                  cpu::update(update.adam, dtype, state, grad, begin, end);
                                });
  }
  for (const Tensor& t : steps) *static_cast<float*>(t.mutable_data_ptr()) += 1;
}

}  // namespace dvae::glue
