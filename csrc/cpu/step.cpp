#include "step.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>

#include "step_worker.h"

namespace dvae::cpu {
namespace {

// Examples encoded at a time, and rows decoded: enough to be worth reading the weights, and few
// enough for their outputs and gradients to lie in a second-level cache, or of wide data not far
// out of it.
constexpr int64_t kTile = 128, kPartRows = 128, kBf16PartRows = 256;
constexpr int64_t kPartBytes = 4 << 20;

// Multiply-adds that are worth a thread.
constexpr int64_t kWorth = 65536;

// Elements of a gradient that are added up, and used, while they are in the first-level cache.
constexpr int64_t kAtOnce = 2048, kOfBlock = 16384;

// Memory that the last call left, for the next, or until one needs more: from the system it would
// come page by page at every step. Not that of very large layers, of which a step is long.
constexpr int64_t kKept = 256 << 20;
std::mutex kept_mutex;
Buffer kept;
int64_t kept_size = 0;

// Outputs of a layer whose weights' gradients are made, and used, while they are in cache: 64 KB,
// or as many as a kernel takes at once, or, of wide inputs, as many as make it worth to go through
// those once more.
int64_t outputs_of_block(int64_t inputs, int64_t outputs) {
  constexpr int64_t kWide = 2048;
  return even_share(outputs, std::max<int64_t>(inputs < kWide ? 12 : 48, kOfBlock / inputs));
}

AdamState from_byte(const AdamState& whole, int64_t first) {
  const auto from = [&](void* t) { return static_cast<char*>(t) + first; };
  return {from(whole.parameter), from(whole.mean), from(whole.square)};
}

Buffer take(int64_t bytes, int64_t& size) {
  if (const std::unique_lock lock(kept_mutex, std::try_to_lock); lock) {
    Buffer last = std::move(kept);
    const int64_t last_size = std::exchange(kept_size, 0);
    if (last_size >= bytes) {
      size = last_size;
      return last;
    }
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

}  // namespace

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
  const int64_t fitting = std::max(kPartBytes / (p.data * element_), kPartRows / 4);
  const int64_t most_rows = std::min(p.bf16 == nullptr ? kPartRows : kBf16PartRows, fitting);
  part_ = std::min(tile_, std::max<int64_t>(1, most_rows / (p.outside ? 1 : p.samples)));
  part_ = even_share(tile_, part_);
  at_the_end_ = p.update != nullptr && p.bf16 == nullptr && encodings(p) == p.examples &&
                most == part_ && Worker(*this, 0).outer() == 1;
  Worker probe(*this, 0);
  probe.lay_out(nullptr);
  workspace_ = lines(probe.used);
  const int64_t of_gradients = gradient_bytes();
  const int64_t of_packed = lines(packed_);
  const int64_t held = p.update == nullptr ? workers - 1 : workers;
  memory_ = take(of_packed + held * of_gradients + workers * workspace_, memory_size_);
  char* const base = static_cast<char*>(memory_.get());
  gradients_ = base + of_packed;
  workspaces_ = gradients_ + held * of_gradients;
  for (std::vector<Layer>* layers : {&encoder_, &decoder_}) {
    for (Layer& layer : *layers) {
      for (Packed* packed : {&layer.forward, &layer.backward}) {
        if (packed->count == 0) continue;
        packed->data = base + packed->at;
        packed->bias = reinterpret_cast<float*>(base + packed->bias_at);
      }
    }
  }
  biases_.assign(static_cast<size_t>(workers * outputs_), 0.0);
  bounds_.assign(static_cast<size_t>(workers), 0.0);
  squared_.assign(static_cast<size_t>(workers), 0.0);
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
  const int64_t panel = p_.bf16 == nullptr ? kernels_.panel[dtype_] : kBf16Columns;
  packed.first = panels_;
  packed.count = (outputs + panel - 1) / panel;
  packed.at = packed_;
  panels_ += packed.count;
  if (p_.bf16 == nullptr) {
    packed_ += lines(packed.count * panel * (inputs + 1) * element_);
    return;
  }
  packed.bias_at = packed.at + bf16_panel_bytes(inputs, outputs);
  packed_ = packed.bias_at + round_up(outputs, 2 * kBf16Columns) * element_;
}

void Step::pack(int64_t begin, int64_t end) {
  for (int network = 0; network < 2; ++network) {
    for (const Layer& layer : this->network(network)) {
      p_.bf16 == nullptr ? pack(layer, begin, end) : pack_bf16(layer, begin, end);
    }
  }
}

// The panels [first, last) of a matrix that are among all's [begin, end).
template <class Packed, class F>
void with_panels(const Packed& packed, int64_t begin, int64_t end, const F& run) {
  const int64_t first = std::max(begin - packed.first, int64_t{0});
  const int64_t last = std::min(end - packed.first, packed.count);
  if (first < last) run(first, last);
}

void Step::pack(const Layer& layer, int64_t begin, int64_t end) {
  const int64_t panel = kernels_.panel[dtype_];
  const char* const w = static_cast<const char*>(layer.weight);
  const char* const b = static_cast<const char*>(layer.bias);
  with_panels(layer.forward, begin, end, [&](int64_t first, int64_t last) {
    const int64_t at = first * panel;
    kernels_.pack_panels[dtype_](w + at * layer.inputs * element_,
                                 b == nullptr ? nullptr : b + at * element_, layer.inputs,
                                 std::min(layer.outputs, last * panel) - at,
                                 layer.forward.data + at * (layer.inputs + 1) * element_);
  });
  with_panels(layer.backward, begin, end, [&](int64_t first, int64_t last) {
    const int64_t at = first * panel;
    kernels_.pack_transposed[dtype_](w + at * element_, layer.inputs, layer.outputs,
                                     std::min(layer.inputs, last * panel) - at,
                                     layer.backward.data + at * (layer.outputs + 1) * element_);
  });
}

void Step::pack_bf16(const Layer& layer, int64_t begin, int64_t end) {
  with_panels(layer.forward, begin, end, [&](int64_t first, int64_t last) {
    p_.bf16->pack(layer.weight, DType::kFloat32, layer.inputs, layer.inputs, layer.outputs,
                  layer.forward.data, first, last);
    if (first > 0) return;
    const float* const b = static_cast<const float*>(layer.bias);
    for (int64_t o = 0; o < round_up(layer.outputs, 2 * kBf16Columns); ++o) {
      layer.forward.bias[o] = b != nullptr && o < layer.outputs ? b[o] : 0.0f;
    }
  });
  with_panels(layer.backward, begin, end, [&](int64_t first, int64_t last) {
    p_.bf16->pack_across(layer.weight, DType::kFloat32, layer.inputs, layer.outputs, layer.inputs,
                         layer.backward.data, first, last);
  });
}

void Step::run(int64_t worker) {
  Worker of(*this, worker);
  of.lay_out(workspaces_ + worker * workspace_);
  of.run();
}

int64_t Step::gradient_bytes() const {
  if (!at_the_end_) return lines(elements_ * element_);
  int64_t most = 0;  // a bias's, too
  for (int network = 0; network < 2; ++network) {
    for (const Layer& layer : this->network(network)) {
      const int64_t block = outputs_of_block(layer.inputs, layer.outputs) * layer.inputs;
      most = std::max({most, block, layer.outputs});
    }
  }
  return lines(most * element_);
}

char* Step::weight_gradient(const Layer& layer, int64_t worker) const {
  if (p_.update == nullptr) {
    if (worker == 0) return static_cast<char*>(layer.grad_weight);
    --worker;
  }
  return gradients_ + worker * gradient_bytes() + layer.first_element * element_;
}

void Step::reduce(int64_t worker) {
  // What Adam has left of a gradient that was 0 for long is denormal.
  [[maybe_unused]] const WithoutDenormals in_this_thread{};
  const auto share = [&](int64_t i) {
    return i == workers_ ? elements_ : elements_ * i / workers_ / kAtOnce * kAtOnce;
  };
  const int64_t begin = share(worker), end = share(worker + 1);
  if (at_the_end_) {
    squared_[static_cast<size_t>(worker)] = update_by_block(begin, end, worker);
    return;
  }
  for (int network = 0; network < 2; ++network) {
    for (const Layer& layer : this->network(network)) {
      const int64_t first = std::max(begin - layer.first_element, int64_t{0});
      const int64_t last = std::min(end - layer.first_element, layer.inputs * layer.outputs);
      for (int64_t i = first; i < last; i += kAtOnce) {
        const int64_t n = std::min(kAtOnce, last - i);
        char* const sum = weight_gradient(layer, 0) + i * element_;
        for (int64_t other = 1; other < workers_; ++other) {
          kernels_.add_to[dtype_](weight_gradient(layer, other) + i * element_, sum, n);
        }
        if (p_.update == nullptr) continue;
        squared_[static_cast<size_t>(worker)] += update(layer.of_weight, i, sum, n);
      }
    }
  }
}

double Step::update_by_block(int64_t begin, int64_t end, int64_t worker) {
  std::vector<Worker> workers;
  for (int64_t i = 0; i < workers_; ++i) {
    workers.emplace_back(*this, i).lay_out(workspaces_ + i * workspace_);
  }
  char* const block = gradients_ + worker * gradient_bytes();
  double squares = 0;
  for (int network = 0; network < 2; ++network) {
    for (size_t i = 0; i < this->network(network).size(); ++i) {
      const Layer& layer = this->network(network)[i];
      const int64_t most = outputs_of_block(layer.inputs, layer.outputs);
      for (int64_t o = 0; o < layer.outputs; o += most) {
        const int64_t first = layer.first_element + o * layer.inputs;
        if (first < begin || first >= end) continue;
        const int64_t count = std::min(most, layer.outputs - o);
        for (const Worker& of : workers) {
          const std::vector<char*>& inputs = network == 0 ? of.encoded : of.decoded;
          kernels_.add_outer[dtype_]({of.kept[network][i] + o * element_, inputs[i], block,
                                      of.rows_of(network), count, layer.inputs, layer.outputs,
                                      of.index == 0});
        }
        squares += update(layer.of_weight, o * layer.inputs, block, count * layer.inputs);
      }
    }
  }
  return squares;
}

double Step::update(const AdamState& whole, int64_t first, const char* grad, int64_t n) const {
  return kernels_.adam[dtype_](*p_.update, grad, from_byte(whole, first * element_), n);
}

double Step::finish() {
  [[maybe_unused]] const WithoutDenormals in_this_thread{};
  const Worker any(*this, 0);
  for (const double of_worker : squared_) squares_ += of_worker;
  for (int network = 0; network < 2; ++network) {
    for (const Layer& layer : this->network(network)) {
      if (layer.bias == nullptr) continue;
      // Where the worker's gradients were, which are added up by now.
      char* const to = p_.update == nullptr ? static_cast<char*>(layer.grad_bias) : gradients_;
      for (int64_t i = 0; i < layer.outputs; ++i) {
        double sum = 0;
        for (int64_t worker = 0; worker < workers_; ++worker) {
          sum += biases_[static_cast<size_t>(worker * outputs_ + layer.first_output + i)];
        }
        any.write(to, i, sum);
      }
      if (p_.update != nullptr) squares_ += update(layer.of_bias, 0, to, layer.outputs);
    }
  }
  double sum = 0;
  for (const double bound : bounds_) sum += bound;
  return -sum / static_cast<double>(encodings(p_) * any.outer());
}

AdamParams adam_step(double step, const AdamOptions& o) {
  const bool decoupled = o.rule == AdamRule::kDecoupled;
  const double root = std::sqrt(1 - std::pow(o.beta2, step));
  AdamParams p{};
  p.rate = o.rate / (1 - std::pow(o.beta1, step));
  p.beta1 = o.beta1;
  p.beta2 = o.beta2;
  p.root_scale = 1 / root;
  p.epsilon = o.epsilon;
  p.factor = o.factor;
  p.decay = decoupled ? 0 : o.decay;
  p.kept = decoupled ? 1 - o.rate * o.decay : 1;
  p.behind = o.rule == AdamRule::kBurda;
  if (p.behind) {  // whose ε is outside the correction
    p.rate *= root;
    p.root_scale = 1;
  }
  return p;
}

void update(const AdamParams& p, DType dtype, const AdamState& state, const void* grad,
            int64_t begin, int64_t end) {
  [[maybe_unused]] const WithoutDenormals in_this_thread{};
  const int64_t first = begin * (dtype == DType::kFloat64 ? 8 : 4);
  kernels().adam[static_cast<int>(dtype)](p, static_cast<const char*>(grad) + first,
                                          from_byte(state, first), end - begin);
}

StepResult run_step(const StepParams& p, int64_t threads,
                    const std::function<void(int64_t n, int64_t part, const Part& body)>& share) {
  const int64_t most = std::min(threads, Step::work(p) / kWorth + 1);
  const int64_t workers = std::clamp<int64_t>(most, 1, Step::encodings(p));
  Step step(p, workers);
  const auto each = [&](int64_t n, const Part& body) {
    if (workers == 1) return body(0, n);
    share(n, (n + workers - 1) / workers, body);
  };
  each(step.panels(), [&](int64_t begin, int64_t end) { step.pack(begin, end); });
  each(workers, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) step.run(begin);
  });
  if (workers > 1 || p.update != nullptr) {
    each(workers, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) step.reduce(begin);
    });
  }
  const double loss = step.finish();
  return {loss, std::sqrt(step.squares())};
}

}  // namespace dvae::cpu
