// A decoder's last layers and its likelihood, in row tiles that stay in cache: a layer's output
// (N, K, D) is never held. The products are torch's, but where a backend has its own.
#include <algorithm>

#include "decoder.h"

namespace dvae::glue {
namespace {

// A (rows, columns) view of memory that someone else keeps.
Tensor matrix(In like, const void* data, int64_t rows, int64_t columns, int64_t row_stride,
              int64_t column_stride) {
  const int64_t sizes[] = {rows, columns};
  const int64_t strides[] = {row_stride, column_stride};
  int32_t dtype = 0, device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(const_cast<void*>(data), 2, sizes,
                                                            strides, 0, dtype, device_type,
                                                            like.get_device_index(), &handle));
  return Tensor(handle);
}

Layer layer_of(const Backend& on, In weight, const Tensor* bias, int64_t inputs, In like) {
  on.check(weight, "weight", {-1, inputs}, like.scalar_type(), like);
  if (bias == nullptr) return {packed(weight), std::nullopt};
  on.check(*bias, "bias", {weight.sizes()[0]}, like.scalar_type(), like);
  return {packed(weight), packed(*bias)};
}

// A decoder that ends in layers; `last`: the last one's weight.
Decoder decoder_of(const Backend& on, In hidden, In last, MaybeIn scale, In x, Name likelihood,
                   MaybeIn mask) {
  const int64_t size = last.dim() > 0 ? last.sizes()[0] : 0;
  return Decoder(on, hidden, "hidden", size, false, scale, x, likelihood, mask);
}

// One layer's tiles.
struct Tiles {
  const Decoder& d;
  const Layer& layer;
  int64_t inputs, rows, tile;
  Tensor transposed;

  Tiles(const Decoder& decoder, const Layer& layer_in)
      : d(decoder),
        layer(layer_in),
        inputs(d.in.sizes()[2]),
        rows(d.p.rows * d.p.samples),
        tile(std::min(rows, d.on.tile_rows(d.in, d.p.size))),
        transposed(
            matrix(layer.weight, layer.weight.const_data_ptr(), inputs, d.p.size, 1, inputs)) {}

  // The tile's rows of the decoder's input, or of another tensor of its shape.
  Tensor rows_of(In t, int64_t begin, int64_t end) const {
    const auto element = static_cast<int64_t>(t.element_size());
    const char* data = static_cast<const char*>(t.const_data_ptr()) + begin * inputs * element;
    return matrix(t, data, end - begin, inputs, inputs, 1);
  }

  // Calls body(begin, end, input's rows, output) for each tile. In output, where p finds it, is
  // input · Wᵀ, with the bias where p has none.
  template <class F>
  void each(DecoderParams& p, const F& body) const {
    if (tile == 0) return;
    const Tensor buffer = empty(d.in, {tile, p.size}, d.in.scalar_type());
    p.params = buffer.const_data_ptr();
    p.bias = layer.bias && is_light(d.likelihood) ? layer.bias->const_data_ptr() : nullptr;
    for (int64_t begin = 0; begin < rows; begin += tile) {
      const int64_t end = std::min(rows, begin + tile);
      const Tensor in = rows_of(d.in, begin, end);
      const Tensor out = matrix(buffer, p.params, end - begin, p.size, p.size, 1);
      (layer.bias && !p.bias) ? d.on.add_product(out, *layer.bias, in, transposed)
                              : d.on.multiply(out, in, transposed);
      p.first_row = begin;
      body(begin, end, in, out);
    }
  }
};

}  // namespace

Tensor linear_log_weights(const Backend& on, In hidden, In weight, MaybeIn bias, MaybeIn scale,
                          In x, In log_ratio, Name likelihood, MaybeIn mask) {
  const Decoder d = decoder_of(on, hidden, weight, scale, x, likelihood, mask);
  const Layer layer = layer_of(on, weight, bias ? &*bias : nullptr, d.in.sizes()[2], d.in);
  LogWeights made(d, log_ratio);
  // Products of float64 are faster by torch.
  const bool wide = d.dtype == DType::kFloat64;
  if (!wide && on.log_weights_of_layers(d, {layer}, Activation::kNone, made.p)) return made.out;
  Tiles(d, layer).each(
      made.p, [&](int64_t begin, int64_t end, In, In) { on.log_weights(d, made.p, begin, end); });
  return made.out;
}

Tensor mlp_log_weights(const Backend& on, In z, const std::vector<Tensor>& weights,
                       const std::vector<Tensor>& biases, Name activation, MaybeIn scale, In x,
                       In log_ratio, Name likelihood, MaybeIn mask) {
  STD_TORCH_CHECK(!weights.empty() && biases.size() == weights.size(),
                  "weights and biases must be of the same layers, one or more, got ",
                  weights.size(), " and ", biases.size());
  STD_TORCH_CHECK(z.scalar_type() != ScalarType::Half,
                  "hidden must be float32, float64 or bfloat16");
  const Decoder d = decoder_of(on, z, weights.back(), scale, x, likelihood, mask);
  std::vector<Layer> layers;
  int64_t width = d.in.sizes()[2];
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor* bias = biases[i].numel() == 0 ? nullptr : &biases[i];
    layers.push_back(layer_of(on, weights[i], bias, width, d.in));
    width = weights[i].sizes()[0];
  }
  const LogWeights made(d, log_ratio);
  STD_TORCH_CHECK(on.log_weights_of_layers(d, layers, activation_of(activation), made.p),
                  "mlp_log_weights has no kernel for this device");
  return made.out;
}

Four linear_log_weights_backward(const Backend& on, In grad_in, In hidden, In weight, MaybeIn bias,
                                 MaybeIn scale, In x, Name likelihood, MaybeIn mask) {
  const Decoder d = decoder_of(on, hidden, weight, scale, x, likelihood, mask);
  const Layer layer = layer_of(on, weight, bias ? &*bias : nullptr, d.in.sizes()[2], d.in);
  const Tensor grad = d.rows(grad_in, "grad");
  Tensor grad_hidden = new_like(d.in), grad_scale = d.scale_gradient();
  Tensor grad_bias = empty(d.in, {d.p.size}, d.in.scalar_type());
  const ScalarType sums = sum_type(d.in);
  const bool low_precision = d.in.scalar_type() != sums;
  // Σ over tiles of gradᵀ · hidden: added up by the matrix product itself, or, where its result
  // has fewer bits than a sum needs, outside.
  Tensor grad_weight = torch::stable::new_zeros(layer.weight, layer.weight.sizes(), sums);
  const Tensor part = low_precision ? new_like(layer.weight) : grad_weight;
  const Tiles tiles(d, layer);
  const auto gradient = on.gradient(d, tiles.tile, true);
  LogWeightGradParams p{d.p, grad.const_data_ptr(), nullptr, nullptr};
  tiles.each(p, [&](int64_t begin, int64_t end, In in, In tile) {
    p.grad_params = tile.mutable_data_ptr();  // the tile becomes its own gradient
    gradient->add(p, begin, end);
    on.multiply(tiles.rows_of(grad_hidden, begin, end), tile, layer.weight);
    const Tensor transposed = matrix(tile, p.grad_params, p.size, end - begin, 1, p.size);
    if (low_precision) {
      on.multiply(part, transposed, in);
      on.add_to(grad_weight, part);
    } else {
      on.add_product(grad_weight, grad_weight, transposed, in);
    }
  });
  gradient->finish(&grad_bias, grad_scale);
  if (low_precision) grad_weight = torch::stable::to(grad_weight, d.in.scalar_type());
  return {grad_hidden, grad_weight, grad_bias, grad_scale};
}

}  // namespace dvae::glue
