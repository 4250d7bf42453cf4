#include "layers.h"

#include <algorithm>

#include "buffer.h"

namespace dvae::cpu {
namespace {

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

PackedLayer pack(const DenseLayer& layer, DType dtype, const ForRows& for_rows) {
  const int64_t inputs = layer.inputs, element = size_of(dtype);
  const Kernels& table = kernels();
  const int t = static_cast<int>(dtype);
  const int64_t panel = table.panel[t], panels = (layer.outputs + panel - 1) / panel;
  PackedLayer packed{inputs, layer.outputs, buffer(panels * panel * (inputs + 1) * element), {}};
  const char* w = static_cast<const char*>(layer.weight);
  const char* b = static_cast<const char*>(layer.bias);
  char* to = static_cast<char*>(packed.panels.get());
  for_rows(panels, panel * inputs, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * panel, count = std::min(layer.outputs, end * panel) - first;
    table.pack_panels[t](w + first * inputs * element, b == nullptr ? nullptr : b + first * element,
                         inputs, count, to + first * (inputs + 1) * element);
  });
  return packed;
}

// Makes log-weights of a tile's output, which such products made where there are some.
void take_likelihood(const LayersParams& of, const LogWeightParams& p, DType dtype,
                     const void* params, int64_t row, int64_t count,
                     const Bf16Products* products = nullptr) {
  LogWeightParams of_tile = p;
  of_tile.params = params;
  of_tile.first_row = row;
  if (products != nullptr && of.likelihood == LikelihoodKind::kBernoulli && of.mask == nullptr) {
    return products->bernoulli(of_tile, row, row + count);
  }
  log_weights(of.mask, of.likelihood, dtype, of_tile, of.scale_kind, row, row + count);
}

// Rows of a tile of bfloat16 layers: a layer's input beside the panels that it meets in the
// first-level cache, the output in half a second-level one; whole blocks.
int64_t rows_of_bf16_tile(int64_t depth, int64_t size, int64_t block) {
  constexpr int64_t kInputBytes = 32 << 10, kOutputBytes = 256 << 10, kMost = 192;
  const int64_t rows = std::min(kInputBytes / std::max<int64_t>(1, 2 * depth),
                                kOutputBytes / std::max<int64_t>(1, 4 * size));
  return std::clamp(rows, block, kMost) / block * block;
}

PackedLayer pack(const DenseLayer& layer, const Bf16Products& products, const ForRows& for_rows) {
  const int64_t outputs = layer.outputs, inputs = layer.inputs;
  const int64_t panels = (outputs + kBf16Columns - 1) / kBf16Columns;
  const int64_t columns = panels * kBf16Columns;
  PackedLayer packed{inputs, outputs, buffer(bf16_panel_bytes(inputs, outputs)),
                     buffer(columns * static_cast<int64_t>(sizeof(float)))};
  for_rows(panels, inputs * kBf16Columns, [&](int64_t begin, int64_t end) {
    products.pack(layer.weight, DType::kBFloat16, inputs, inputs, outputs, packed.panels.get(),
                  begin, end);
  });
  const auto* bias = static_cast<const BFloat16*>(layer.bias);
  float* start = static_cast<float*>(packed.start.get());
  for (int64_t i = 0; i < columns; ++i) {
    start[i] = bias != nullptr && i < outputs ? load(bias[i]) : 0.0f;
  }
  return packed;
}

// Of bfloat16; sums, and what is made of them, in float32.
void run_bf16(const Bf16Products& products, const LayersParams& of, const LogWeightParams& p,
              const ForRows& for_rows) {
  std::vector<PackedLayer> packed;
  int64_t depth = 0, work = 0;
  for (const DenseLayer& layer : of.layers) {
    packed.push_back(pack(layer, products, for_rows));
    depth = std::max(depth, bf16_depth(layer.inputs));
    work += layer.inputs * layer.outputs;
  }
  const int64_t rows = p.rows * p.samples, inputs = of.layers[0].inputs, block = products.rows;
  const int64_t tile = rows_of_bf16_tile(depth, p.size, block);
  const auto* base = static_cast<const BFloat16*>(of.in);
  for_rows((rows + block - 1) / block, block * work, [&](int64_t begin, int64_t end) {
    const Buffer a[] = {buffer(tile * depth * 2), buffer(tile * depth * 2)};
    const Buffer output = buffer(tile * p.size * static_cast<int64_t>(sizeof(float)));
    const Bf16Session session(products);
    const int64_t last_row = std::min(rows, end * block);
    for (int64_t row = begin * block; row < last_row; row += tile) {
      const int64_t count = std::min(tile, last_row - row);
      products.pack_rows(base + row * inputs, DType::kBFloat16, count, inputs, a[0].get());
      for (size_t i = 0; i < packed.size(); ++i) {
        const bool last = i + 1 == packed.size();
        Bf16Product product{};
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
          product.activation = of.between;
        }
        products.multiply(product);
      }
      take_likelihood(of, p, DType::kFloat32, output.get(), row, count, &products);
    }
  });
}

// Of float32 or float64.
void run_wide(const LayersParams& of, const LogWeightParams& p, const ForRows& for_rows) {
  std::vector<PackedLayer> packed;
  int64_t hidden_width = 0, work = 0;
  for (const DenseLayer& layer : of.layers) {
    packed.push_back(pack(layer, of.dtype, for_rows));
    work += layer.inputs * layer.outputs;
    if (packed.size() < of.layers.size()) hidden_width = std::max(hidden_width, layer.outputs);
  }
  const auto dense = kernels().dense[static_cast<int>(of.dtype)];
  const int64_t element = size_of(of.dtype);
  const int64_t rows = p.rows * p.samples, inputs = of.layers[0].inputs;
  const int64_t tile = rows_of_tile(std::max(p.size, hidden_width), element);
  const char* base = static_cast<const char*>(of.in);
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
               last ? Activation::kNone : of.between});
        from = to;
      }
      take_likelihood(of, p, of.dtype, from, row, count);
    }
  });
}

}  // namespace

void log_weights_of_layers(const LayersParams& of, const LogWeightParams& p,
                           const ForRows& for_rows) {
  if (of.dtype == DType::kBFloat16) return run_bf16(*bf16_products(), of, p, for_rows);
  run_wide(of, p, for_rows);
}

}  // namespace dvae::cpu
