// A decoder of dense layers and its likelihood: each thread takes a few rows at a time through all
// layers, so that neither hidden activations nor output leave its cache, and none waits for
// another.
#include <algorithm>

#include "../../cpu/buffer.h"
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
};

PackedLayer pack(const Layer& layer, int dtype) {
  const int64_t outputs = layer.weight.sizes()[0], inputs = layer.weight.sizes()[1];
  const auto element = static_cast<int64_t>(layer.weight.element_size());
  const cpu::Kernels& kernels = cpu::kernels();
  const int64_t panel = kernels.panel[dtype], panels = (outputs + panel - 1) / panel;
  PackedLayer packed{inputs, outputs, buffer(panels * panel * (inputs + 1) * element)};
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

}  // namespace

void run_layers(const Decoder& d, const std::vector<Layer>& layers, Activation between,
                const LogWeightParams& p) {
  const auto dtype = static_cast<int>(d.dtype);
  std::vector<PackedLayer> packed;
  int64_t widest = p.size, hidden_width = 0, work = 0;
  for (const Layer& layer : layers) {
    packed.push_back(pack(layer, dtype));
    work += packed.back().inputs * packed.back().outputs;
    if (packed.size() < layers.size()) hidden_width = std::max(hidden_width, packed.back().outputs);
  }
  widest = std::max(widest, hidden_width);
  const auto dense = cpu::kernels().dense[dtype];
  const auto element = static_cast<int64_t>(d.in.element_size());
  const int64_t rows = p.rows * p.samples, inputs = d.in.sizes()[2];
  const int64_t tile = rows_of_tile(widest, element);
  const char* base = static_cast<const char*>(d.in.const_data_ptr());
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
      LogWeightParams of_tile = p;
      of_tile.params = from;
      of_tile.first_row = row;
      cpu::log_weights(mask_of(d), d.likelihood, d.dtype, of_tile, d.scale_kind, row, row + count);
    }
  });
}

}  // namespace dvae::glue
