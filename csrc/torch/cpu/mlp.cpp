// A decoder of dense layers and its likelihood: each thread takes a few rows at a time through all
// layers, so that neither hidden activations nor output leave its cache, and none waits for
// another.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "likelihood.h"
#include "mlp.h"
#include "operators.h"

namespace dvae::glue {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;

// Aligned for vectors, uninitialised.
Buffer buffer(int64_t bytes) {
  const auto whole = static_cast<size_t>((bytes + 63) / 64 * 64);
  void* p = std::aligned_alloc(64, std::max<size_t>(whole, 64));
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(p);
}

// A multiple of the rows that the kernel takes at once, whatever the instruction set.
constexpr int64_t kGroup = 12;

// Rows of a tile: its output lies in half a second-level cache; whole groups.
int64_t tile_rows(int64_t width, int64_t element_size) {
  constexpr int64_t kTileBytes = 192 << 10, kMost = 240;
  return std::clamp(kTileBytes / std::max<int64_t>(1, width * element_size), kGroup, kMost) /
         kGroup * kGroup;
}

Activation activation_of(const std::string& name) {
  for (int i = 0; i < static_cast<int>(std::size(kActivationNames)); ++i) {
    if (name == kActivationNames[i]) return static_cast<Activation>(i);
  }
  STD_TORCH_CHECK(false, "activation must be none, softplus, relu or tanh, got ", name);
}

struct Layer {
  int64_t inputs, outputs;
  Buffer panels;
};

Layer pack(const Tensor& weight_in, const Tensor* bias_in, int64_t inputs, const Tensor& like) {
  check_shape(weight_in, "weight", {-1, inputs});
  check_dtype(weight_in, "weight", like.scalar_type());
  const Tensor weight = packed(weight_in);
  const int64_t outputs = weight.sizes()[0], element = static_cast<int64_t>(like.element_size());
  std::optional<Tensor> bias;
  if (bias_in != nullptr) {
    check_shape(*bias_in, "bias", {outputs});
    check_dtype(*bias_in, "bias", like.scalar_type());
    bias = packed(*bias_in);
  }
  const cpu::Kernels& kernels = cpu::kernels();
  const auto dtype = static_cast<int>(dtype_of(like, "hidden"));
  const int64_t panel = kernels.panel[dtype], panels = (outputs + panel - 1) / panel;
  Layer layer{inputs, outputs, buffer(panels * panel * (inputs + 1) * element)};
  const char* w = static_cast<const char*>(weight.const_data_ptr());
  const char* b = bias ? static_cast<const char*>(bias->const_data_ptr()) : nullptr;
  char* to = static_cast<char*>(layer.panels.get());
  for_rows(panels, panel * inputs, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * panel, count = std::min(outputs, end * panel) - first;
    kernels.pack_panels[dtype](w + first * inputs * element,
                               b == nullptr ? nullptr : b + first * element, inputs, count,
                               to + first * (inputs + 1) * element);
  });
  return layer;
}

}  // namespace

Tensor decoder_log_weights(const Tensor& in, const std::vector<Tensor>& weights,
                           const std::vector<const Tensor*>& biases, Activation activation,
                           const std::optional<Tensor>& scale_in, const Tensor& x_in,
                           const Tensor& log_ratio_in, LikelihoodKind likelihood) {
  check_shape(in, "hidden", {-1, -1, -1});
  const auto dtype = static_cast<int>(dtype_of(in, "hidden"));
  const ScalarType sums = sum_type(in);
  STD_TORCH_CHECK(in.scalar_type() == sums, "hidden must be float32 or float64");
  const Tensor first = packed(in), x = packed(x_in), log_ratio = packed(log_ratio_in);
  LogWeightParams p{};
  p.rows = first.sizes()[0];
  p.samples = first.sizes()[1];
  std::vector<Layer> layers;
  int64_t width = first.sizes()[2], widest = 0, work = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    layers.push_back(pack(weights[i], biases[i], width, in));
    work += width * layers.back().outputs;
    width = layers.back().outputs;
    if (i + 1 < weights.size()) widest = std::max(widest, width);
  }
  p.size = width;
  Scale scale(scale_in, likelihood, in, p.size);
  check_not_full(scale.kind, scale_in);
  Decoder::set_x(p, x, sums, p.rows);
  check_shape(log_ratio, "log_ratio", {p.rows, p.samples});
  check_dtype(log_ratio, "log_ratio", sums);
  scale.fill(p, sums);
  Tensor out = new_like(log_ratio);
  p.log_ratio = log_ratio.const_data_ptr();
  p.log_w = out.mutable_data_ptr();

  const cpu::Kernels& kernels = cpu::kernels();
  const auto kernel = kernels.log_weights[static_cast<int>(likelihood)][dtype];
  const auto dense = kernels.dense[dtype];
  const auto element = static_cast<int64_t>(in.element_size());
  const int64_t rows = p.rows * p.samples;
  const int64_t tile = tile_rows(std::max(p.size, widest), element);
  const char* base = static_cast<const char*>(first.const_data_ptr());
  const int64_t inputs = first.sizes()[2];
  // Shared out by groups, not by tiles: of few tiles one thread would get more than another.
  for_rows((rows + kGroup - 1) / kGroup, kGroup * work, [&](int64_t begin, int64_t end) {
    const Buffer hidden[] = {buffer(tile * widest * element), buffer(tile * widest * element)};
    const Buffer output = buffer(tile * p.size * element);
    const int64_t last_row = std::min(rows, end * kGroup);
    for (int64_t row = begin * kGroup; row < last_row; row += tile) {
      const int64_t count = std::min(tile, last_row - row);
      const void* from = base + row * inputs * element;
      for (size_t i = 0; i < layers.size(); ++i) {
        const bool last = i + 1 == layers.size();
        void* const to = last ? output.get() : hidden[i % 2].get();
        dense({from, layers[i].panels.get(), to, count, layers[i].inputs, layers[i].outputs,
               last ? Activation::kNone : activation});
        from = to;
      }
      LogWeightParams of_tile = p;
      of_tile.params = from;
      of_tile.first_row = row;
      kernel(of_tile, scale.kind, row, row + count);
    }
  });
  return out;
}

Tensor mlp_log_weights_cpu(const Tensor& z, const std::vector<Tensor>& weights,
                           const std::vector<Tensor>& biases, const std::string& activation,
                           const std::optional<Tensor>& scale, const Tensor& x,
                           const Tensor& log_ratio, const std::string& likelihood) {
  STD_TORCH_CHECK(!weights.empty() && biases.size() == weights.size(),
                  "weights and biases must be of the same layers, one or more, got ",
                  weights.size(), " and ", biases.size());
  std::vector<const Tensor*> given;
  for (const Tensor& bias : biases) given.push_back(bias.numel() == 0 ? nullptr : &bias);
  return decoder_log_weights(z, weights, given, activation_of(activation), scale, x, log_ratio,
                             likelihood_kind(likelihood));
}

}  // namespace dvae::glue
