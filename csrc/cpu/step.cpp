#include "step.h"

#include <algorithm>
#include <cstring>
#include <mutex>

namespace dvae::cpu {
namespace {

// Examples encoded at a time: enough rows for products at full speed. And rows decoded: their
// outputs and gradients lie in a second-level cache, and are enough to be worth reading the
// weights.
constexpr int64_t kTile = 64, kPartRows = 128;

// A kernel may read past a row by less than this.
constexpr int64_t kSlack = 64;

int64_t round_up(int64_t n) { return (n + 63) / 64 * 64; }

// The largest share where n are shared out evenly among as many as `most` asks for.
int64_t even_share(int64_t n, int64_t most) {
  const int64_t shares = std::max<int64_t>(1, (n + most - 1) / most);
  return std::max<int64_t>(1, (n + shares - 1) / shares);
}

// Memory that the last call left, for the next: some MB, which from the system would come page by
// page at every step. Not that of many samples of many dimensions, of which a step is long.
constexpr int64_t kKept = 64 << 20;
std::mutex kept_mutex;
Buffer kept;
int64_t kept_size = 0;

Buffer take(int64_t bytes, int64_t& size) {
  if (const std::unique_lock lock(kept_mutex, std::try_to_lock); lock && kept_size >= bytes) {
    size = kept_size;
    kept_size = 0;
    return std::move(kept);
  }
  size = bytes;
  return buffer(bytes);
}
void leave(Buffer memory, int64_t size) {
  if (const std::unique_lock lock(kept_mutex, std::try_to_lock);
      lock && kept_size < size && size <= kKept) {
    kept = std::move(memory);
    kept_size = size;
  }
}

// Where row 0 would lie of what begins with row `first`: kernels count rows of the whole batch.
char* row_zero(char* data, int64_t first, int64_t row_bytes) { return data - first * row_bytes; }

}  // namespace

// One worker's memory, and its way through.
struct Step::Worker {
  Worker(Step& step, int64_t worker)
      : s(step), p(step.p_), k(step.kernels_), d(step.dtype_), index(worker) {}

  Step& s;
  const StepParams& p;
  const Kernels& k;
  const int d;
  const int64_t index;
  char* next = nullptr;
  int64_t used = 0;
  // Each layer's input, then the last one's output.
  std::vector<char*> encoded, decoded;
  char *mean, *log_var, *d_mean, *d_log_var, *more_mean, *more_log_var;
  char *log_ratio, *log_w, *bounds, *grads[2], *encoder_grads[2];
  bool first[2] = {true, true};
  double bound = 0;

  // Also without memory, to see how much there must be.
  char* rows(int64_t count, int64_t size) {
    char* const at = next == nullptr ? nullptr : next + used;
    used += round_up((count * size + kSlack) * s.element_);
    return at;
  }
  void lay_out(char* memory) {
    next = memory;
    const int64_t tile = s.tile_, drawn = s.part_ * inner();
    for (const Layer& layer : s.encoder_) encoded.push_back(rows(tile, layer.inputs));
    encoded.push_back(rows(tile, 2 * p.latent));
    for (char** to : {&mean, &log_var, &d_mean, &d_log_var, &more_mean, &more_log_var}) {
      *to = rows(tile, p.latent);
    }
    for (const Layer& layer : s.decoder_) decoded.push_back(rows(drawn, layer.inputs));
    decoded.push_back(rows(drawn, p.data));
    for (char** to : {&log_ratio, &log_w, &bounds}) *to = rows(drawn, 1);
    for (int i = 0; i < 2; ++i) {
      grads[i] = rows(drawn, widest(s.decoder_, false));
      encoder_grads[i] = rows(tile, widest(s.encoder_, true));
    }
  }
  // Of inputs to which a gradient goes; and outputs, for the encoder, whose last is made there.
  int64_t widest(const std::vector<Layer>& layers, bool ends) const {
    int64_t most = ends ? 2 * p.latent : p.latent;
    for (const Layer& layer : layers) {
      if (&layer != &layers.front()) most = std::max(most, layer.inputs);
    }
    return most;
  }

  // Samples inside the logarithm; and how often each encoding is drawn from besides.
  int64_t inner() const { return p.outside ? 1 : p.samples; }
  int64_t outer() const {
    return (p.outside ? p.samples : 1) * (p.corruption == nullptr ? p.copies : 1);
  }

  void run() {
    const int64_t all = encodings(p);
    const int64_t end = all * (index + 1) / s.workers_;
    for (int64_t begin = all * index / s.workers_; begin < end;) {
      const int64_t stop = std::min(end, (begin / p.examples + 1) * p.examples);  // of one copy
      const int64_t share = even_share(stop - begin, s.tile_);
      for (; begin < stop; begin += share) {
        tile(begin / p.examples, begin % p.examples, std::min(share, stop - begin));
      }
      begin = stop;
    }
    s.bounds_[static_cast<size_t>(index)] = bound;
  }

  // Examples [begin, begin + count) of one corruption.
  void tile(int64_t copy, int64_t begin, int64_t count) {
    encode(copy, begin, count);
    std::memset(d_mean, 0, static_cast<size_t>(count * p.latent * s.element_));
    std::memset(d_log_var, 0, static_cast<size_t>(count * p.latent * s.element_));
    for (int64_t u = 0; u < outer(); ++u) {
      const int64_t share = even_share(count, s.part_);
      for (int64_t i = 0; i < count; i += share) {
        part(copy * outer() + u, begin, i, std::min(share, count - i));
      }
    }
    const int64_t half = p.latent * s.element_;
    for (int64_t i = 0; i < count; ++i) {
      char* const to = encoder_grads[0] + 2 * i * half;
      std::memcpy(to, d_mean + i * half, static_cast<size_t>(half));
      std::memcpy(to + half, d_log_var + i * half, static_cast<size_t>(half));
    }
    back(0, encoded, encoder_grads[0], encoder_grads, count);
  }

  void encode(int64_t copy, int64_t begin, int64_t count) {
    const int64_t row = p.data * s.element_;
    if (p.corruption == nullptr) {
      std::memcpy(encoded[0], static_cast<const char*>(p.x) + begin * row,
                  static_cast<size_t>(count * row));
    } else {
      CorruptTables t = *p.corruption;
      const int64_t at = copy * p.examples + begin;
      t.out = row_zero(encoded[0], at, row);
      k.corrupt[d](t, at, at + count);
    }
    forward(s.encoder_, encoded, count);
    const int64_t half = p.latent * s.element_;
    for (int64_t i = 0; i < count; ++i) {
      const char* const from = encoded.back() + 2 * i * half;
      std::memcpy(mean + i * half, from, static_cast<size_t>(half));
      std::memcpy(log_var + i * half, from + half, static_cast<size_t>(half));
    }
  }

  void forward(const std::vector<Layer>& layers, const std::vector<char*>& held, int64_t count) {
    for (size_t i = 0; i < layers.size(); ++i) {
      const bool last = i + 1 == layers.size();
      k.dense[d]({held[i], layers[i].forward.data, held[i + 1], count, layers[i].inputs,
                  layers[i].outputs, last ? Activation::kNone : p.activation});
    }
  }

  // From `grad`, of the last layer's output, to the first one's input, where a gradient goes on to
  // that; returns it, in one of `free`.
  char* back(int network, const std::vector<char*>& held, char* grad, char* const (&free)[2],
             int64_t count) {
    const std::vector<Layer>& layers = s.network(network);
    for (size_t i = layers.size(); i-- > 0;) {
      const Layer& layer = layers[i];
      k.add_outer[d]({grad, held[i], s.weight_gradient(layer, index), count, layer.outputs,
                      layer.inputs, first[network]});
      if (layer.bias != nullptr) {
        double* const sums = &s.biases_[static_cast<size_t>(index * s.outputs_)];
        k.add_column_sums[d](grad, count, layer.outputs, sums + layer.first_output, 0,
                             layer.outputs);
      }
      if (layer.backward.data == nullptr) break;
      char* const below = free[grad == free[0] ? 1 : 0];
      k.dense[d]({grad, layer.backward.data, below, count, layer.outputs, layer.inputs,
                  Activation::kNone});
      if (i > 0) k.activation_backward[d](p.activation, below, held[i], count * layer.inputs);
      grad = below;
    }
    first[network] = false;
    return grad;
  }

  // Draw `copy` of the tile's examples [i, i + count), whose first is `begin` of the batch.
  void part(int64_t copy, int64_t begin, int64_t i, int64_t count) {
    const int64_t row = copy * p.examples + begin + i, k_inner = inner();
    const int64_t half = p.latent * s.element_, drawn = count * k_inner;
    char* const z = decoded[0];
    LatentParams l{};
    l.mean = row_zero(mean + i * half, row, half);
    l.log_var = row_zero(log_var + i * half, row, half);
    l.z = row_zero(z, row * k_inner, half);
    l.log_ratio = row_zero(log_ratio, row * k_inner, s.element_);
    l.copies = copy + 1;
    l.examples = p.examples;
    l.samples = k_inner;
    l.size = p.latent;
    l.noise = p.noise;
    k.sample_latent[d](l, row * k_inner, (row + count) * k_inner);
    // The same rows for kernels without noise, which need not know where in the batch they are.
    LatentParams here = l;
    here.mean = mean + i * half;
    here.log_var = log_var + i * half;
    here.z = z;
    here.log_ratio = log_ratio;
    if (p.analytic) k.divergence[d](here, 0, count);
    forward(s.decoder_, decoded, drawn);

    IwaeParams w{};
    w.params = w.grad_params = decoded.back();
    w.x = static_cast<const char*>(p.x) + (begin + i) * p.data * s.element_;
    w.rows = w.examples = count;
    w.samples = k_inner;
    w.size = p.data;
    w.log_ratio = log_ratio;
    w.log_w = log_w;
    w.bound = bounds;
    w.multiplier = -1.0 / static_cast<double>(encodings(p) * outer());
    k.iwae[static_cast<int>(p.likelihood)][d](w, ScaleKind::kNone, nullptr, 0, count);
    for (int64_t n = 0; n < count; ++n) bound += read(bounds, n);

    char* grad_z = back(1, decoded, decoded.back(), grads, drawn);
    // The gradient of log_ratio takes its place.
    for (int64_t r = 0; r < drawn; ++r) {
      write(log_ratio, r, read(log_w, r) * w.multiplier * p.kl_weight);
    }
    if (p.drops_score) {
      here.grad_log_ratio = log_ratio;
      here.grad_z_out = grads[grad_z == grads[0] ? 1 : 0];
      here.grad_mean = more_mean;
      here.grad_log_var = more_log_var;
      k.latent_log_ratio_backward[d](here, 0, count);
      k.add_to[d](here.grad_z_out, grad_z, drawn * p.latent);
      if (p.doubly) {
        for (int64_t r = 0; r < drawn; ++r) scale(grad_z + r * half, read(log_w, r));
      }
    }
    l.grad_z = row_zero(grad_z, row * k_inner, half);
    const bool through_ratio = !p.drops_score && !p.analytic;
    l.grad_log_ratio = through_ratio ? row_zero(log_ratio, row * k_inner, s.element_) : nullptr;
    l.grad_mean = row_zero(more_mean, row, half);
    l.grad_log_var = row_zero(more_log_var, row, half);
    k.sample_latent_backward[d](l, row, row + count);
    if (p.analytic) {
      here.grad_log_ratio = log_ratio;
      here.grad_mean = more_mean;
      here.grad_log_var = more_log_var;
      k.divergence_backward[d](here, 0, count);
    }
    k.add_to[d](more_mean, d_mean + i * half, count * p.latent);
    k.add_to[d](more_log_var, d_log_var + i * half, count * p.latent);
  }

  double read(const char* data, int64_t i) const {
    return p.dtype == DType::kFloat64 ? reinterpret_cast<const double*>(data)[i]
                                      : reinterpret_cast<const float*>(data)[i];
  }
  void write(char* data, int64_t i, double value) const {
    if (p.dtype == DType::kFloat64) {
      reinterpret_cast<double*>(data)[i] = value;
    } else {
      reinterpret_cast<float*>(data)[i] = static_cast<float>(value);
    }
  }
  void scale(char* row, double factor) const { k.scale_by[d](row, factor, 0, p.latent); }
};

int64_t Step::encodings(const StepParams& p) {
  return p.examples * (p.corruption == nullptr ? 1 : p.copies);
}

int64_t Step::work(const StepParams& p) {
  int64_t encoder = 0, decoder = 0;
  for (const StepLayer& layer : p.encoder) encoder += layer.inputs * layer.outputs;
  for (const StepLayer& layer : p.decoder) decoder += layer.inputs * layer.outputs;
  return encodings(p) * encoder + p.copies * p.examples * p.samples * decoder;
}

Step::Step(const StepParams& p, int64_t workers)
    : p_(p),
      kernels_(kernels()),
      dtype_(static_cast<int>(p.dtype)),
      element_(p.dtype == DType::kFloat64 ? 8 : 4),
      workers_(workers) {
  lay_out(p.encoder, true, encoder_);
  lay_out(p.decoder, false, decoder_);
  const int64_t most = (encodings(p) + workers - 1) / workers;
  tile_ = std::min(even_share(most, kTile), p.examples);
  part_ = std::min(tile_, std::max<int64_t>(1, kPartRows / (p.outside ? 1 : p.samples)));
  part_ = even_share(tile_, part_);
  Worker probe(*this, 0);
  probe.lay_out(nullptr);
  workspace_ = round_up(probe.used);
  const int64_t of_gradients = round_up(elements_ * element_);
  const int64_t of_packed = round_up(packed_ * element_);
  memory_ = take(of_packed + (workers - 1) * of_gradients + workers * workspace_, memory_size_);
  char* const base = static_cast<char*>(memory_.get());
  gradients_ = base + of_packed;
  workspaces_ = gradients_ + (workers - 1) * of_gradients;
  for (std::vector<Layer>* layers : {&encoder_, &decoder_}) {
    for (Layer& layer : *layers) {
      for (Packed* packed : {&layer.forward, &layer.backward}) {
        if (packed->count > 0) packed->data = base + packed->at * element_;
      }
    }
  }
  biases_.assign(static_cast<size_t>(workers * outputs_), 0.0);
  bounds_.assign(static_cast<size_t>(workers), 0.0);
}

Step::~Step() { leave(std::move(memory_), memory_size_); }

void Step::lay_out(const std::vector<StepLayer>& from, bool ends, std::vector<Layer>& to) {
  for (const StepLayer& given : from) {
    Layer layer{given, {}, {}, elements_, outputs_};
    place(layer.forward, given.inputs, given.outputs);
    if (!ends || &given != &from.front()) place(layer.backward, given.outputs, given.inputs);
    elements_ += given.inputs * given.outputs;
    outputs_ += given.outputs;
    to.push_back(layer);
  }
}

void Step::place(Packed& packed, int64_t inputs, int64_t outputs) {
  const int64_t panel = kernels_.panel[dtype_];
  packed.first = panels_;
  packed.count = (outputs + panel - 1) / panel;
  packed.at = packed_;
  panels_ += packed.count;
  packed_ += packed.count * panel * (inputs + 1);
}

void Step::pack(int64_t begin, int64_t end) {
  const int64_t panel = kernels_.panel[dtype_];
  for (int network = 0; network < 2; ++network) {
    for (const Layer& layer : this->network(network)) {
      const char* const w = static_cast<const char*>(layer.weight);
      const char* const b = static_cast<const char*>(layer.bias);
      const auto each = [&](const Packed& packed, int64_t inputs, int64_t outputs, auto run) {
        const int64_t first = std::max(begin - packed.first, int64_t{0});
        const int64_t last = std::min(end - packed.first, packed.count);
        if (first >= last) return;
        const int64_t column = first * panel, columns = std::min(outputs, last * panel) - column;
        run(column, columns, packed.data + column * (inputs + 1) * element_);
      };
      each(layer.forward, layer.inputs, layer.outputs, [&](int64_t at, int64_t n, char* to) {
        kernels_.pack_panels[dtype_](w + at * layer.inputs * element_,
                                     b == nullptr ? nullptr : b + at * element_, layer.inputs, n,
                                     to);
      });
      each(layer.backward, layer.outputs, layer.inputs, [&](int64_t at, int64_t n, char* to) {
        kernels_.pack_transposed[dtype_](w + at * element_, layer.inputs, layer.outputs, n, to);
      });
    }
  }
}

void Step::run(int64_t worker) {
  Worker of(*this, worker);
  of.lay_out(workspaces_ + worker * workspace_);
  of.run();
}

void* Step::weight_gradient(const Layer& layer, int64_t worker) const {
  if (worker == 0) return layer.grad_weight;
  const int64_t of_gradients = round_up(elements_ * element_);
  return gradients_ + (worker - 1) * of_gradients + layer.first_element * element_;
}

void Step::reduce(int64_t begin, int64_t end) {
  for (int network = 0; network < 2; ++network) {
    for (const Layer& layer : this->network(network)) {
      const int64_t size = layer.inputs * layer.outputs;
      const int64_t first = std::max(begin - layer.first_element, int64_t{0});
      const int64_t last = std::min(end - layer.first_element, size);
      if (first >= last) continue;
      char* const to = static_cast<char*>(layer.grad_weight) + first * element_;
      for (int64_t worker = 1; worker < workers_; ++worker) {
        const char* from = static_cast<const char*>(weight_gradient(layer, worker));
        kernels_.add_to[dtype_](from + first * element_, to, last - first);
      }
    }
  }
}

double Step::finish() {
  const Worker any(*this, 0);
  for (int network = 0; network < 2; ++network) {
    for (const Layer& layer : this->network(network)) {
      if (layer.bias == nullptr) continue;
      for (int64_t i = 0; i < layer.outputs; ++i) {
        double sum = 0;
        for (int64_t worker = 0; worker < workers_; ++worker) {
          sum += biases_[static_cast<size_t>(worker * outputs_ + layer.first_output + i)];
        }
        any.write(static_cast<char*>(layer.grad_bias), i, sum);
      }
    }
  }
  double sum = 0;
  for (const double bound : bounds_) sum += bound;
  return -sum / static_cast<double>(encodings(p_) * any.outer());
}

}  // namespace dvae::cpu
