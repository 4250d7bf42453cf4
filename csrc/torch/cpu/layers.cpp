// A decoder of dense layers and its likelihood: each thread takes a few rows at a time through all
// layers, so that neither hidden activations nor output leave its cache, and none waits for
// another.
#include <algorithm>

#include "../../cpu/buffer.h"
#include "../../cpu/products.h"
#include "rows.h"

namespace dvae::glue {
namespace {

using cpu::Buffer;
using cpu::buffer;

// A multiple of the rows that the kernel takes at once, whatever the instruction set.
constexpr int64_t kGroup = 12;

// Rows of a tile: its output lies in half a second-level cache; whole groups.
int64_t rows_of_tile(int64_t width, int64_t element_size) {
  constexpr int64_t kTileBytes = 192 << 10, kMost = 240;
  return std::clamp(kTileBytes / std::max<int64_t>(1, width * element_size), kGroup, kMost) /
         kGroup * kGroup;
}

struct PackedLayer {
  int64_t inputs, outputs;
  Buffer panels;
  Buffer start;  // of bfloat16 layers, whose panels have no biases: float32
};

PackedLayer pack(const Layer& layer, int dtype) {
  const int64_t outputs = layer.weight.sizes()[0], inputs = layer.weight.sizes()[1];
  const auto element = static_cast<int64_t>(layer.weight.element_size());
  const cpu::Kernels& kernels = cpu::kernels();
  const int64_t panel = kernels.panel[dtype], panels = (outputs + panel - 1) / panel;
  PackedLayer packed{inputs, outputs, buffer(panels * panel * (inputs + 1) * element), {}};
  const char* w = static_cast<const char*>(layer.weight.const_data_ptr());
  const char* b = layer.bias ? static_cast<const char*>(layer.bias->const_data_ptr()) : nullptr;
  char* to = static_cast<char*>(packed.panels.get());
  for_rows(panels, panel * inputs, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * panel, count = std::min(outputs, end * panel) - first;
    kernels.pack_panels[dtype](w + first * inputs * element,
                               b == nullptr ? nullptr : b + first * element, inputs, count,
                               to + first * (inputs + 1) * element);
  });
  return packed;
}

// Makes log-weights of a tile's output, which such products made where there are some.
void take_likelihood(const Decoder& d, const LogWeightParams& p, DType dtype, const void* params,
                     int64_t row, int64_t count, const cpu::Bf16Products* products = nullptr) {
  LogWeightParams of_tile = p;
  of_tile.params = params;
  of_tile.first_row = row;
  if (products != nullptr && d.likelihood == LikelihoodKind::kBernoulli && mask_of(d) == nullptr) {
    return products->bernoulli(of_tile, row, row + count);
  }
  cpu::log_weights(mask_of(d), d.likelihood, dtype, of_tile, d.scale_kind, row, row + count);
}

// Rows of a tile of bfloat16 layers: a layer's input beside the panels that it meets in the
// first-level cache, the output in half a second-level one; whole blocks.
int64_t rows_of_bf16_tile(int64_t depth, int64_t size, int64_t block) {
  constexpr int64_t kInputBytes = 32 << 10, kOutputBytes = 256 << 10, kMost = 192;
  const int64_t rows = std::min(kInputBytes / std::max<int64_t>(1, 2 * depth),
                                kOutputBytes / std::max<int64_t>(1, 4 * size));
  return std::clamp(rows, block, kMost) / block * block;
}

PackedLayer pack(const Layer& layer, const cpu::Bf16Products& products) {
  const int64_t outputs = layer.weight.sizes()[0], inputs = layer.weight.sizes()[1];
  const int64_t panels = (outputs + cpu::kBf16Columns - 1) / cpu::kBf16Columns;
  const int64_t columns = panels * cpu::kBf16Columns;
  PackedLayer packed{inputs, outputs, buffer(cpu::bf16_panel_bytes(inputs, outputs)),
                     buffer(columns * static_cast<int64_t>(sizeof(float)))};
  for_rows(panels, inputs * cpu::kBf16Columns, [&](int64_t begin, int64_t end) {
    products.pack(layer.weight.const_data_ptr(), DType::kBFloat16, inputs, inputs, outputs,
                  packed.panels.get(), begin, end);
  });
  const auto* bias =
      layer.bias ? static_cast<const BFloat16*>(layer.bias->const_data_ptr()) : nullptr;
  float* start = static_cast<float*>(packed.start.get());
  for (int64_t i = 0; i < columns; ++i) {
    start[i] = bias != nullptr && i < outputs ? load(bias[i]) : 0.0f;
  }
  return packed;
}

// Of bfloat16; sums, and what is made of them, in float32.
void run_bf16_layers(const cpu::Bf16Products& products, const Decoder& d,
                     const std::vector<Layer>& layers, Activation between,
                     const LogWeightParams& p) {
  std::vector<PackedLayer> packed;
  int64_t depth = 0, work = 0;
  for (const Layer& layer : layers) {
    packed.push_back(pack(layer, products));
    depth = std::max(depth, cpu::bf16_depth(packed.back().inputs));
    work += packed.back().inputs * packed.back().outputs;
  }
  const int64_t rows = p.rows * p.samples, inputs = d.in.sizes()[2], block = products.rows;
  const int64_t tile = rows_of_bf16_tile(depth, p.size, block);
  const auto* base = static_cast<const BFloat16*>(d.in.const_data_ptr());
  for_rows((rows + block - 1) / block, block * work, [&](int64_t begin, int64_t end) {
    const Buffer a[] = {buffer(tile * depth * 2), buffer(tile * depth * 2)};
    const Buffer output = buffer(tile * p.size * static_cast<int64_t>(sizeof(float)));
    const cpu::Bf16Session session(products);
    const int64_t last_row = std::min(rows, end * block);
    for (int64_t row = begin * block; row < last_row; row += tile) {
      const int64_t count = std::min(tile, last_row - row);
      products.pack_rows(base + row * inputs, DType::kBFloat16, count, inputs, a[0].get());
      for (size_t i = 0; i < packed.size(); ++i) {
        const bool last = i + 1 == packed.size();
        cpu::Bf16Product product{};
        product.a = a[i % 2].get();
        product.panels = packed[i].panels.get();
        product.rows = count;
        product.depth = packed[i].inputs;
        product.columns = packed[i].outputs;
        product.start = static_cast<const float*>(packed[i].start.get());
        if (last) {
          product.c = static_cast<float*>(output.get());
          product.stride = p.size;
        } else {
          product.next = a[1 - i % 2].get();
          product.activation = between;
        }
        products.multiply(product);
      }
      take_likelihood(d, p, DType::kFloat32, output.get(), row, count, &products);
    }
  });
}

Layer in_float32(const Layer& layer) {
  Layer wide{torch::stable::to(layer.weight, ScalarType::Float), std::nullopt};
  if (layer.bias) wide.bias = torch::stable::to(*layer.bias, ScalarType::Float);
  return wide;
}

// Of float32 or float64, as `in` is.
void run_wide_layers(const Decoder& d, In in, const std::vector<Layer>& layers, Activation between,
                     const LogWeightParams& p) {
  const auto dtype = static_cast<int>(dtype_of(in, "hidden"));
  std::vector<PackedLayer> packed;
  int64_t widest = p.size, hidden_width = 0, work = 0;
  for (const Layer& layer : layers) {
    packed.push_back(pack(layer, dtype));
    work += packed.back().inputs * packed.back().outputs;
    if (packed.size() < layers.size()) hidden_width = std::max(hidden_width, packed.back().outputs);
  }
  widest = std::max(widest, hidden_width);
  const auto dense = cpu::kernels().dense[dtype];
  const auto element = static_cast<int64_t>(in.element_size());
  const int64_t rows = p.rows * p.samples, inputs = in.sizes()[2];
  const int64_t tile = rows_of_tile(widest, element);
  const char* base = static_cast<const char*>(in.const_data_ptr());
  // Shared out by groups, not by tiles: of few tiles one thread would get more than another.
  for_rows((rows + kGroup - 1) / kGroup, kGroup * work, [&](int64_t begin, int64_t end) {
    const Buffer hidden[] = {buffer(tile * hidden_width * element),
                             buffer(tile * hidden_width * element)};
    const Buffer output = buffer(tile * p.size * element);
    const int64_t last_row = std::min(rows, end * kGroup);
    for (int64_t row = begin * kGroup; row < last_row; row += tile) {
      const int64_t count = std::min(tile, last_row - row);
      const void* from = base + row * inputs * element;
      for (size_t i = 0; i < packed.size(); ++i) {
        const bool last = i + 1 == packed.size();
        void* const to = last ? output.get() : hidden[i % 2].get();
        dense({from, packed[i].panels.get(), to, count, packed[i].inputs, packed[i].outputs,
               last ? Activation::kNone : between});
        from = to;
      }
      take_likelihood(d, p, static_cast<DType>(dtype), from, row, count);
    }
  });
}

}  // namespace

void run_layers(const Decoder& d, const std::vector<Layer>& layers, Activation between,
                const LogWeightParams& p) {
  if (d.dtype != DType::kBFloat16) return run_wide_layers(d, d.in, layers, between, p);
  const cpu::Bf16Products* const products = cpu::bf16_products();
  if (products != nullptr) return run_bf16_layers(*products, d, layers, between, p);
  std::vector<Layer> wide;
  for (const Layer& layer : layers) wide.push_back(in_float32(layer));
  run_wide_layers(d, torch::stable::to(d.in, ScalarType::Float), wide, between, p);
}

}  // namespace dvae::glue
