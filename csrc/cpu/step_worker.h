// A worker of a training step, which step.cpp shares out.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "step.h"

namespace dvae::cpu {

// A kernel may read past a row by less than this.
constexpr int64_t kSlack = 64;

// Whole lines of cache.
inline int64_t lines(int64_t bytes) { return round_up(bytes, 64); }

// Bytes of the left factor of a product of bfloat16.
inline int64_t bf16_rows_bytes(const Bf16Products& products, int64_t rows, int64_t depth) {
  return round_up(rows, products.rows) * bf16_depth(depth) * 2;
}

// The largest share where n are shared out evenly among as many as `most` asks for.
inline int64_t even_share(int64_t n, int64_t most) {
  const int64_t shares = std::max<int64_t>(1, (n + most - 1) / most);
  return std::max<int64_t>(1, (n + shares - 1) / shares);
}

// Denormals taken for 0 while it lives: what samples of next to no weight hand on, which products
// take far longer for. A step of widely spread weights at K = 50 took two to four times as long.
class WithoutDenormals {
#if defined(__x86_64__)
 public:
  WithoutDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~WithoutDenormals() { _mm_setcsr(before_); }
  WithoutDenormals(const WithoutDenormals&) = delete;
  WithoutDenormals& operator=(const WithoutDenormals&) = delete;

 private:
  const unsigned before_;
#endif
};

// Where row 0 would lie of what begins with row `first`: kernels count rows of the whole batch.
inline char* row_zero(char* data, int64_t first, int64_t row_bytes) {
  return data - first * row_bytes;
}

// One worker's memory, and its way through.
struct Step::Worker {
  Worker(Step& step, int64_t worker)
      : s(step), p(step.p_), k(step.kernels_), b(p.bf16), d(step.dtype_), index(worker) {}

  Step& s;
  const StepParams& p;
  const Kernels& k;
  const Bf16Products* const b;
  const int d;
  const int64_t index;
  char* next = nullptr;
  int64_t used = 0;
  // Each layer's input, then the last one's output. The inputs are rows of bfloat16 where such are
  // multiplied, and the first ones lie beside them as they were.
  std::vector<char*> encoded, decoded;
  char *noisy, *z;
  // Of bfloat16: a gradient's rows and columns, and a layer's input.
  char *grad_rows, *grad_columns, *input_panels;
  char *mean, *log_var, *d_mean, *d_log_var, *more_mean, *more_log_var;
  char *log_ratio, *log_w, *bounds, *grads[2], *encoder_grads[2];
  // Of each layer's output, where they are kept: see Step::at_the_end_.
  std::vector<char*> kept[2];
  bool first[2] = {true, true};
  double bound = 0;

  // Also without memory, to see how much there must be.
  char* bytes(int64_t count) {
    char* const at = next == nullptr ? nullptr : next + used;
    used += lines(count);
    return at;
  }
  char* rows(int64_t count, int64_t size) { return bytes((count * size + kSlack) * s.element_); }
  void lay_out(char* memory) {
    next = memory;
    const int64_t tile = s.tile_, drawn = s.part_ * inner();
    const auto inputs = [&](const std::vector<Layer>& layers, int64_t count,
                            std::vector<char*>& held) {
      for (const Layer& layer : layers) {
        held.push_back(b == nullptr ? rows(count, layer.inputs)
                                    : bytes(bf16_rows_bytes(*b, count, layer.inputs)));
      }
    };
    inputs(s.encoder_, tile, encoded);
    encoded.push_back(rows(tile, 2 * p.latent));
    for (char** to : {&mean, &log_var, &d_mean, &d_log_var, &more_mean, &more_log_var}) {
      *to = rows(tile, p.latent);
    }
    inputs(s.decoder_, drawn, decoded);
    decoded.push_back(rows(drawn, p.data));
    noisy = b == nullptr ? encoded[0] : rows(tile, p.data);
    z = b == nullptr ? decoded[0] : rows(drawn, p.latent);
    if (b != nullptr) lay_out_bf16(std::max(tile, drawn));
    for (char** to : {&log_ratio, &log_w, &bounds}) *to = rows(drawn, 1);
    for (int i = 0; i < 2; ++i) {
      grads[i] = rows(drawn, widest(s.decoder_, false));
      encoder_grads[i] = rows(tile, widest(s.encoder_, true));
    }
    if (!s.at_the_end_) return;
    for (const Layer& layer : s.encoder_) kept[0].push_back(rows(tile, layer.outputs));
    for (const Layer& layer : s.decoder_) kept[1].push_back(rows(drawn, layer.outputs));
    kept[0].back() = encoder_grads[0];
    kept[1].back() = decoded.back();
  }
  void lay_out_bf16(int64_t count) {
    int64_t inputs = 1, outputs = 1;
    for (const std::vector<Layer>* layers : {&s.encoder_, &s.decoder_}) {
      for (const Layer& layer : *layers) {
        inputs = std::max(inputs, layer.inputs);
        outputs = std::max(outputs, layer.outputs);
      }
    }
    grad_rows = bytes(bf16_rows_bytes(*b, count, outputs));
    grad_columns = bytes(bf16_rows_bytes(*b, outputs, count));
    input_panels = bytes(bf16_panel_bytes(count, inputs));
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

  int64_t share_begin(int64_t worker) const { return encodings(p) * worker / s.workers_; }
  // Rows of a network's layers, where each worker has one tile of one part.
  int64_t rows_of(int network) const {
    return (share_begin(index + 1) - share_begin(index)) * (network == 0 ? 1 : inner());
  }

  void run() {
    [[maybe_unused]] const WithoutDenormals in_this_thread{};
    if (b != nullptr) b->begin();
    const int64_t end = share_begin(index + 1);
    for (int64_t begin = share_begin(index); begin < end;) {
      const int64_t stop = std::min(end, (begin / p.examples + 1) * p.examples);  // of one copy
      const int64_t share = even_share(stop - begin, s.tile_);
      for (; begin < stop; begin += share) {
        tile(begin / p.examples, begin % p.examples, std::min(share, stop - begin));
      }
      begin = stop;
    }
    if (b != nullptr) b->end();
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
      std::memcpy(noisy, static_cast<const char*>(p.x) + begin * row,
                  static_cast<size_t>(count * row));
    } else {
      CorruptTables t = *p.corruption;
      const int64_t at = copy * p.examples + begin;
      t.out = row_zero(noisy, at, row);
      k.corrupt[d](t, at, at + count);
    }
    if (b != nullptr) b->pack_rows(noisy, DType::kFloat32, count, p.data, encoded[0]);
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
      const Layer& layer = layers[i];
      const bool last = i + 1 == layers.size();
      if (b == nullptr) {
        k.dense[d]({held[i], layer.forward.data, held[i + 1], count, layer.inputs, layer.outputs,
                    last ? Activation::kNone : p.activation});
        continue;
      }
      Bf16Product q = product(held[i], layer.forward.data, count, layer.inputs, layer.outputs);
      q.start = layer.forward.bias;
      if (last) {
        q.c = reinterpret_cast<float*>(held[i + 1]);
      } else {
        q.next = held[i + 1];
        q.activation = p.activation;
      }
      b->multiply(q);
    }
  }
  static Bf16Product product(const char* a, const char* panels, int64_t rows, int64_t depth,
                             int64_t columns) {
    Bf16Product q{};
    q.a = a;
    q.panels = panels;
    q.rows = rows;
    q.depth = depth;
    q.columns = q.stride = columns;
    q.activation = Activation::kNone;
    return q;
  }

  // From `grad`, of the last layer's output, to the first one's input, where a gradient goes on to
  // that; returns it, in one of `free`.
  char* back(int network, const std::vector<char*>& held, char* grad, char* const (&free)[2],
             int64_t count) {
    const std::vector<Layer>& layers = s.network(network);
    for (size_t i = layers.size(); i-- > 0;) {
      const Layer& layer = layers[i];
      add_gradients(layer, held[i], grad, count, first[network]);
      if (layer.backward.data == nullptr) break;
      const bool keeps = s.at_the_end_ && i > 0;
      char* const below = keeps ? kept[network][i - 1] : free[grad == free[0] ? 1 : 0];
      if (b == nullptr) {
        k.dense[d]({grad, layer.backward.data, below, count, layer.outputs, layer.inputs,
                    Activation::kNone});
        if (i > 0) k.activation_backward[d](p.activation, below, held[i], count * layer.inputs);
      } else {
        b->pack_rows(grad, DType::kFloat32, count, layer.outputs, grad_rows);
        Bf16Product q = product(grad_rows, layer.backward.data, count, layer.outputs, layer.inputs);
        q.c = reinterpret_cast<float*>(below);
        b->multiply(q);
        if (i > 0) b->activation_backward(p.activation, q.c, held[i], count, layer.inputs);
      }
      grad = below;
    }
    first[network] = false;
    return grad;
  }

  void add_gradients(const Layer& layer, const char* input, const char* grad, int64_t count,
                     bool is_first) {
    if (!s.at_the_end_) add_weight_gradient(layer, input, grad, count, is_first);
    if (layer.bias == nullptr) return;
    double* const sums = &s.biases_[static_cast<size_t>(index * s.outputs_)];
    k.add_column_sums[d](grad, count, layer.outputs, sums + layer.first_output, 0, layer.outputs);
  }
  void add_weight_gradient(const Layer& layer, const char* input, const char* grad, int64_t count,
                           bool is_first) {
    char* const to = s.weight_gradient(layer, index);
    if (b == nullptr) {
      return k.add_outer[d](
          {grad, input, to, count, layer.outputs, layer.inputs, layer.outputs, is_first});
    }
    b->pack_rows_across(reinterpret_cast<const float*>(grad), count, layer.outputs, grad_columns);
    b->pack_across(input, DType::kBFloat16, bf16_depth(layer.inputs), count, layer.inputs,
                   input_panels, 0, round_up(layer.inputs, kBf16Columns) / kBf16Columns);
    Bf16Product q = product(grad_columns, input_panels, layer.outputs, count, layer.inputs);
    q.c = reinterpret_cast<float*>(to);
    q.add = !is_first;
    b->multiply(q);
  }

  // Draw `copy` of the tile's examples [i, i + count), whose first is `begin` of the batch.
  void part(int64_t copy, int64_t begin, int64_t i, int64_t count) {
    const int64_t row = copy * p.examples + begin + i, k_inner = inner();
    const int64_t half = p.latent * s.element_, drawn = count * k_inner;
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
    if (b != nullptr) b->pack_rows(z, DType::kFloat32, drawn, p.latent, decoded[0]);
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

}  // namespace dvae::cpu
