// The CPU kernels: plain loops over core's functions, compiled once per ISA.
//
// Included by kernels_<isa>.cpp, which sets the target and defines DVAE_ISA. Inner loops run over
// lanes, each with an accumulator of its own, so that the compiler vectorises them without
// reordering any sum: 16 lanes where a row is summed, a noise block of 64 where columns are.

#include "../core/corruptions.h"
#include "../core/half.h"
#include "../core/latent.h"
#include "../core/likelihoods.h"
#include "../core/logsumexp.h"
#include "../core/math.h"
#include "../core/mean_exp.h"
#include "../core/noise.h"
#include "dense.h"
#include "kernels.h"
#ifdef DVAE_VECTOR_BYTES
#include "philox_lanes.h"
#endif

namespace dvae::cpu {
namespace {

constexpr int64_t kTile = kBlock;
constexpr int64_t kSumRows = 64;  // terms of one kind that a single float takes in

DVAE_HD int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
DVAE_HD const T* at(const void* base, int64_t offset) {
  return static_cast<const T*>(base) + offset;
}
template <class T>
DVAE_HD T* at(void* base, int64_t offset) {
  return static_cast<T*>(base) + offset;
}

template <class A>
DVAE_HD void fill(A* p, int64_t n, A value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

// total += part, which starts again.
template <class A>
DVAE_HD void fold(A* part, A* total, int64_t n) {
  for (int64_t i = 0; i < n; ++i) total[i] = total[i] + part[i];
  fill(part, n, A(0));
}

// body(i, lane) for i in [0, n): whole groups of 16 lanes with a constant trip count, then the
// rest. The lanes are independent, so the compiler vectorises each group.
template <class F>
DVAE_HD void for_lanes(int64_t n, const F& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) body(i + lane, lane);
  }
  for (int lane = 0; lane < n - i; ++lane) body(i + lane, lane);
}

// The sum of 16 accumulators, in a fixed tree. Every width is a constant: as a loop over widths GCC
// 12 leaves the branches in, 20 ns a sum and not 5.
template <int kWidth = kLanes / 2, class A>
DVAE_HD A sum_lanes(A* v) {
  for (int i = 0; i < kWidth; ++i) v[i] = v[i] + v[i + kWidth];
  if constexpr (kWidth > 1) return sum_lanes<kWidth / 2>(v);
  return v[0];
}

// --- noise ------------------------------------------------------------------------------------

DVAE_HD void noise_words(int64_t block, uint32_t sample, uint32_t example, uint32_t stream, Key key,
                         uint32_t* w) {
#ifdef DVAE_VECTOR_BYTES
  philox_block(static_cast<uint32_t>(block) * kLanes, sample, example, stream, key, w);
#else
  for (int i = 0; i < kLanes; ++i) {
    noise_lane(block, i, sample, example, stream, key, w[i], w[kLanes + i], w[2 * kLanes + i],
               w[3 * kLanes + i]);
  }
#endif
}

// Normals for the first n elements of a block (the rest is left as it was, or filled too).
template <class A>
DVAE_HD void noise_normals(int64_t block, uint32_t sample, uint32_t example, uint32_t stream,
                           Key key, int64_t n, A* out) {
  alignas(64) uint32_t w[kBlock];
  noise_words(block, sample, example, stream, key, w);
  for (int pair = 0; pair < kBlock && pair < n; pair += 2 * kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      normal_pair(w[pair + i], w[pair + kLanes + i], out[pair + i], out[pair + kLanes + i]);
    }
  }
}

// --- corruption -------------------------------------------------------------------------------

template <class C, class T>
void corrupt_discrete(const CorruptParams& p, int64_t begin, int64_t end) {
  const Key key = key_from_seed(p.noise.seed);
  alignas(64) uint32_t w[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t copy = row / p.examples, example = row % p.examples;
    const T* in = at<T>(p.in, example * p.size);
    T* out = at<T>(p.out, row * p.size);
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      noise_words(block, p.noise.first_sample + static_cast<uint32_t>(copy),
                  p.noise.first_example + static_cast<uint32_t>(example), kStreamCorruption, key,
                  w);
      const int32_t* hit = p.hit + block * p.table_stride;
      const int32_t* one = p.one + block * p.table_stride;
      const auto element = [&](int64_t i) __attribute__((always_inline)) {
        store(out[j + i], C::apply(load(in[j + i]), uniform24(w[i]), hit[i], one[i]));
      };
      if (p.size - j >= kTile) {
#pragma GCC ivdep
        for (int i = 0; i < kBlock; ++i) element(i);
      } else {
#pragma GCC ivdep
        for (int64_t i = 0; i < p.size - j; ++i) element(i);
      }
    }
  }
}

template <class T>
void corrupt_gaussian(const CorruptParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(p.noise.seed);
  alignas(64) A normal[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t copy = row / p.examples, example = row % p.examples;
    const T* in = at<T>(p.in, example * p.size);
    T* out = at<T>(p.out, row * p.size);
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      const int64_t n = min64(kTile, p.size - j);
      noise_normals(block, p.noise.first_sample + static_cast<uint32_t>(copy),
                    p.noise.first_example + static_cast<uint32_t>(example), kStreamCorruption, key,
                    n, normal);
      const A* std = at<A>(p.std, block * p.table_stride);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        store(out[j + i], AdditiveGaussian::apply(load(in[j + i]), normal[i], std[i]));
      }
    }
  }
}

template <class T>
void corrupt(const CorruptParams& p, int64_t begin, int64_t end) {
  switch (p.kind) {
    case CorruptionKind::kMasking:
      return corrupt_discrete<Masking, T>(p, begin, end);
    case CorruptionKind::kSaltAndPepper:
      return corrupt_discrete<SaltAndPepper, T>(p, begin, end);
    case CorruptionKind::kBitFlip:
      return corrupt_discrete<BitFlip, T>(p, begin, end);
    case CorruptionKind::kGaussian:
      return corrupt_gaussian<T>(p, begin, end);
    case CorruptionKind::kIdentity:
      for (int64_t row = begin; row < end; ++row) {
        const T* in = at<T>(p.in, row % p.examples * p.size);
        T* out = at<T>(p.out, row * p.size);
        for (int64_t i = 0; i < p.size; ++i) out[i] = in[i];
      }
  }
}

// Σ over copies of grad · ∂x̃/∂x; C = Identity stands for every derivative of 1.
template <class C, class T>
void corrupt_backward_as(const CorruptParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(p.noise.seed);
  alignas(64) uint32_t w[kBlock];
  alignas(64) A sum[kBlock];
  for (int64_t example = begin; example < end; ++example) {
    T* out = at<T>(p.out, example * p.size);
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      const int64_t n = min64(kTile, p.size - j);
      const int32_t* hit = p.hit + block * p.table_stride;
      fill(sum, kBlock, A(0));
      for (int64_t copy = 0; copy < p.copies; ++copy) {
        const T* grad = at<T>(p.in, (copy * p.examples + example) * p.size + j);
        if constexpr (C::kRandom) {
          noise_words(block, p.noise.first_sample + static_cast<uint32_t>(copy),
                      p.noise.first_example + static_cast<uint32_t>(example), kStreamCorruption,
                      key, w);
          for (int64_t i = 0; i < n; ++i) {
            sum[i] = sum[i] + C::derivative(load(grad[i]), uniform24(w[i]), hit[i]);
          }
        } else {
          for (int64_t i = 0; i < n; ++i) sum[i] = sum[i] + load(grad[i]);
        }
      }
      for (int64_t i = 0; i < n; ++i) store(out[j + i], sum[i]);
    }
  }
}

template <class T>
void corrupt_backward(const CorruptParams& p, int64_t begin, int64_t end) {
  switch (p.kind) {
    case CorruptionKind::kMasking:
      return corrupt_backward_as<Masking, T>(p, begin, end);
    case CorruptionKind::kSaltAndPepper:
      return corrupt_backward_as<SaltAndPepper, T>(p, begin, end);
    case CorruptionKind::kBitFlip:
      return corrupt_backward_as<BitFlip, T>(p, begin, end);
    case CorruptionKind::kIdentity:
    case CorruptionKind::kGaussian:
      return corrupt_backward_as<Identity, T>(p, begin, end);
  }
}

template <class T>
void corrupt_backward_std(const CorruptParams& p, double* out, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(p.noise.seed);
  alignas(64) A normal[kBlock];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t j = block * kTile, n = min64(kTile, p.size - j);
    alignas(64) double sum[kBlock] = {};
    for (int64_t copy = 0; copy < p.copies; ++copy) {
      for (int64_t example = 0; example < p.examples; ++example) {
        noise_normals(block, p.noise.first_sample + static_cast<uint32_t>(copy),
                      p.noise.first_example + static_cast<uint32_t>(example), kStreamCorruption,
                      key, n, normal);
        const T* grad = at<T>(p.in, (copy * p.examples + example) * p.size + j);
        for (int64_t i = 0; i < n; ++i) {
          sum[i] = sum[i] + static_cast<double>(load(grad[i])) * static_cast<double>(normal[i]);
        }
      }
    }
    for (int i = 0; i < kBlock; ++i) out[j + i] = sum[i];
  }
}

// --- latent samples ---------------------------------------------------------------------------

// e^(c · log_var) of one row, kept between the row's samples while the row fits.
template <class T>
struct RowExp {
  using A = accumulate_t<T>;
  static constexpr int64_t kCapacity = 512;
  alignas(64) A value[kCapacity];
  int64_t row = -1;

  // Pointer to the 64 values from element j of `row`.
  DVAE_HD const A* get(const T* log_var, int64_t size, int64_t r, int64_t j, A c) {
    if (size <= kCapacity) {
      if (r != row) {
        for (int64_t i = 0; i < size; ++i) value[i] = exp(c * load(log_var[i]));
        row = r;
      }
      return value + j;
    }
    const int64_t n = min64(kTile, size - j);
    for (int64_t i = 0; i < n; ++i) value[i] = exp(c * load(log_var[j + i]));
    return value;
  }
};

struct LatentRow {
  int64_t row, sample;
  uint32_t example, stream;
};

DVAE_HD LatentRow latent_row(const LatentParams& p, int64_t row, int64_t sample) {
  return {row, sample, p.noise.first_example + static_cast<uint32_t>(row % p.examples),
          stream_word(kStreamLatent, static_cast<uint32_t>(row / p.examples))};
}

template <class T>
void sample_latent(const LatentParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(p.noise.seed);
  RowExp<T> std;
  alignas(64) A noise[kBlock];
  for (int64_t r = begin; r < end; ++r) {
    const LatentRow at_row = latent_row(p, r / p.samples, r % p.samples);
    const T* mean = at<T>(p.mean, at_row.row * p.size);
    const T* log_var = at<T>(p.log_var, at_row.row * p.size);
    T* z = at<T>(p.z, r * p.size);
    alignas(64) A ratio[kLanes] = {};
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      const int64_t n = min64(kTile, p.size - j);
      const A* sigma = std.get(log_var, p.size, at_row.row, j, A(0.5));
      noise_normals(block, p.noise.first_sample + static_cast<uint32_t>(at_row.sample),
                    at_row.example, at_row.stream, key, n, noise);
      for_lanes(n, [&](int64_t i, int lane) __attribute__((always_inline)) {
        const A value = load(mean[j + i]) + sigma[i] * noise[i];
        store(z[j + i], value);
        ratio[lane] =
            ratio[lane] + DiagonalNormal::log_ratio(noise[i], value, load(log_var[j + i]));
      });
    }
    *at<A>(p.log_ratio, r) = sum_lanes(ratio);
  }
}

// A sum over samples, of a block: in two levels, for one float that has taken in thousands loses as
// much of each.
template <class A>
struct SampleSum {
  alignas(64) A part[kBlock] = {};
  alignas(64) A total[kBlock] = {};

  DVAE_HD void end_sample(int64_t k) {
    if ((k + 1) % kSumRows == 0) fold(part, total, kBlock);
  }
  template <class T>
  DVAE_HD void store_to(T* out, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) store(out[i], total[i] + part[i]);
  }
};

template <class T>
void sample_latent_backward(const LatentParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(p.noise.seed);
  RowExp<T> std;
  alignas(64) A noise[kBlock];
  alignas(64) A grad_z[kBlock] = {};
  for (int64_t row = begin; row < end; ++row) {
    const T* mean = at<T>(p.mean, row * p.size);
    const T* log_var = at<T>(p.log_var, row * p.size);
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      const int64_t n = min64(kTile, p.size - j);
      const A* sigma = std.get(log_var, p.size, row, j, A(0.5));
      SampleSum<A> d_mean, d_log_var;
      for (int64_t k = 0; k < p.samples; ++k) {
        const LatentRow at_row = latent_row(p, row, k);
        const int64_t r = row * p.samples + k;
        noise_normals(block, p.noise.first_sample + static_cast<uint32_t>(k), at_row.example,
                      at_row.stream, key, n, noise);
        const A grad_r = p.grad_log_ratio != nullptr ? *at<A>(p.grad_log_ratio, r) : A(0);
        if (p.grad_z != nullptr) {
          const T* g = at<T>(p.grad_z, r * p.size + j);
          for (int64_t i = 0; i < n; ++i) grad_z[i] = load(g[i]);
        }
        for (int64_t i = 0; i < n; ++i) {
          const A scaled = sigma[i] * noise[i];
          DiagonalNormal::accumulate_gradient(grad_z[i], grad_r, load(mean[j + i]) + scaled, scaled,
                                              d_mean.part[i], d_log_var.part[i]);
        }
        d_mean.end_sample(k);
        d_log_var.end_sample(k);
      }
      d_mean.store_to(at<T>(p.grad_mean, row * p.size + j), n);
      d_log_var.store_to(at<T>(p.grad_log_var, row * p.size + j), n);
    }
  }
}

template <class T>
void latent_log_ratio(const LatentParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  RowExp<T> precision;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t row = r / p.samples;
    const T* mean = at<T>(p.mean, row * p.size);
    const T* log_var = at<T>(p.log_var, row * p.size);
    const T* z = at<T>(static_cast<const void*>(p.z), r * p.size);
    alignas(64) A ratio[kLanes] = {};
    for (int64_t j = 0; j < p.size; j += kTile) {
      const int64_t n = min64(kTile, p.size - j);
      const A* inverse = precision.get(log_var, p.size, row, j, A(-1));
      for_lanes(n, [&](int64_t i, int lane) __attribute__((always_inline)) {
        ratio[lane] = ratio[lane] + DiagonalNormal::log_ratio_at(load(z[j + i]), load(mean[j + i]),
                                                                 inverse[i], load(log_var[j + i]));
      });
    }
    *at<A>(p.log_ratio, r) = sum_lanes(ratio);
  }
}

template <class T>
void latent_log_ratio_backward(const LatentParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  RowExp<T> precision;
  for (int64_t row = begin; row < end; ++row) {
    const T* mean = at<T>(p.mean, row * p.size);
    const T* log_var = at<T>(p.log_var, row * p.size);
    for (int64_t j = 0; j < p.size; j += kTile) {
      const int64_t n = min64(kTile, p.size - j);
      const A* inverse = precision.get(log_var, p.size, row, j, A(-1));
      SampleSum<A> d_mean, d_log_var;
      for (int64_t k = 0; k < p.samples; ++k) {
        const int64_t r = row * p.samples + k;
        const A g = *at<A>(p.grad_log_ratio, r);
        const T* z = at<T>(static_cast<const void*>(p.z), r * p.size + j);
        T* out = at<T>(p.grad_z_out, r * p.size + j);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          store(out[i],
                DiagonalNormal::log_ratio_at_gradient(g, load(z[i]), load(mean[j + i]), inverse[i],
                                                      d_mean.part[i], d_log_var.part[i]));
        }
        d_mean.end_sample(k);
        d_log_var.end_sample(k);
      }
      d_mean.store_to(at<T>(p.grad_mean, row * p.size + j), n);
      d_log_var.store_to(at<T>(p.grad_log_var, row * p.size + j), n);
    }
  }
}

// --- log-weights ------------------------------------------------------------------------------

// One pair of a likelihood's accumulators per lane. Never merged, so each may take in what four
// merged ones could (likelihoods.h).
template <class L, class A>
struct Lanes {
  static constexpr int64_t kCapacity = int64_t{4} * L::kMaxPush * kLanes;
  alignas(64) A a[kLanes];
  alignas(64) A b[kLanes];

  DVAE_HD void clear() {
    fill(a, kLanes, A(0));
    fill(b, kLanes, A(0));
  }
  DVAE_HD A finish() {
    alignas(64) A total[kLanes];
    for (int i = 0; i < kLanes; ++i) total[i] = L::finish(a[i], b[i]);
    return sum_lanes(total);
  }
};

// Where one row (n, k) of the decoder output and of x lie.
template <class T>
struct RowView {
  using A = accumulate_t<T>;
  const T* params;
  const T* bias;
  const A* x;
  const A* shared_scale;
  int64_t scale_stride;
  const T* full_scale;

  template <bool kBias>
  DVAE_HD A param(int64_t j) const {
    return kBias ? load(params[j]) + load(bias[j]) : load(params[j]);
  }
  // Of element j + i, j a multiple of kLanes: a table's blocks have 64 elements.
  template <ScaleKind kScale>
  DVAE_HD A scale(int64_t j, int64_t i) const {
    return kScale == ScaleKind::kFull ? load(full_scale[j + i])
                                      : shared_scale[j / kTile * scale_stride + j % kTile + i];
  }
};

template <class T>
DVAE_HD RowView<T> row_view(const LogWeightParams& p, int64_t row) {
  using A = accumulate_t<T>;
  const int64_t at_params = (row - p.first_row) * p.size;
  return {at<T>(p.params, at_params),
          static_cast<const T*>(p.bias),
          at<A>(p.x, row / p.samples % p.examples * p.size),
          static_cast<const A*>(p.scale),
          p.scale_stride,
          at<T>(p.scale, at_params)};
}

// Calls body(i) for the n elements of a block; n = 64 with a constant trip count.
#define DVAE_FOR_BLOCK(n, body)                                     \
  if ((n) == kTile) {                                               \
    _Pragma("GCC ivdep") for (int i = 0; i < kBlock; ++i) body(i);  \
  } else {                                                          \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < (n); ++i) body(i); \
  }

// log p(x|z) of one row. kDerivative: also leaves d log p / d logit in out.
template <class L, class T, ScaleKind kScale, bool kBias, bool kDerivative>
DVAE_HD accumulate_t<T> row_density(const LogWeightParams& p, const RowView<T>& v, T* out) {
  using A = accumulate_t<T>;
  Lanes<L, A> lanes;
  A total = 0;
  for (int64_t j = 0; j < p.size;) {
    const int64_t stop = min64(p.size, j + Lanes<L, A>::kCapacity);
    const auto push = [&](int64_t i) __attribute__((always_inline)) {
      const A param = v.template param<kBias>(j + i);
      if constexpr (L::kHasScale) {
        const A scale = v.template scale<kScale>(j, i);
        L::template push<kScale>(lanes.a[i], lanes.b[i], param, scale, v.x[j + i]);
      } else if constexpr (kDerivative) {
        store(out[j + i], L::push_with_derivative(lanes.a[i], lanes.b[i], param, v.x[j + i]));
      } else {
        L::push(lanes.a[i], lanes.b[i], param, v.x[j + i]);
      }
    };
    lanes.clear();
    for (; j + kLanes <= stop; j += kLanes) {
#pragma GCC ivdep
      for (int i = 0; i < kLanes; ++i) push(i);
    }
    for (int64_t i = 0; i < stop - j; ++i) push(i);
    j = stop;
    total = total + lanes.finish();
  }
  return total + static_cast<A>(L::row_constant(p.size, p.log_scale_sum));
}

// Σ of what the rows of an example have in common, made when rows come to another example.
template <class L, class T, ScaleKind kScale>
struct DataTerm {
  using A = accumulate_t<T>;
  int64_t n = -1;
  A value = 0;

  DVAE_HD A of(const LogWeightParams& p, const RowView<T>& v, int64_t row) {
    if constexpr (L::kHasDataTerm) {
      if (row / p.samples != n) {
        n = row / p.samples;
        value = sum(p, v);
      }
    }
    return value;
  }

 private:
  DVAE_HD static A sum(const LogWeightParams& p, const RowView<T>& v) {
    A total = 0;
    for (int64_t j = 0; j < p.size;) {
      const int64_t stop = min64(p.size, j + kSumRows * kLanes);
      alignas(64) A lanes[kLanes] = {};
      const auto add = [&](int64_t i) __attribute__((always_inline)) {
        A scale = 1;
        if constexpr (kScale == ScaleKind::kShared) scale = v.template scale<kScale>(j, i);
        lanes[i] = lanes[i] + L::template data_term<kScale>(scale, v.x[j + i]);
      };
      for (; j + kLanes <= stop; j += kLanes) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) add(i);
      }
      for (int64_t i = 0; i < stop - j; ++i) add(i);
      j = stop;
      total = total + sum_lanes(lanes);
    }
    return total;
  }
};

// Adds data_term's part of a shared scale's gradient, for all rows of an example at once.
template <class L, class T, ScaleKind kScale>
struct DataGradient {
  using A = accumulate_t<T>;
  static constexpr bool kWanted = L::kHasDataTerm && kScale == ScaleKind::kShared;
  const LogWeightParams& p;
  double* scale_sum;
  int64_t n = -1, row = 0;
  double weight = 0;  // Σ over the example's rows
  bool any = false;

  DVAE_HD void add(int64_t next, A w) {
    if constexpr (kWanted) {
      if (next / p.samples != n) {
        flush();
        n = next / p.samples;
        row = next;
      }
      weight += static_cast<double>(w);
      any = any || w != A(0);
    }
  }
  DVAE_HD void flush() {
    if constexpr (kWanted) {
      if (scale_sum != nullptr && any) {
        const RowView<T> v = row_view<T>(p, row);
        for (int64_t j = 0; j < p.size; j += kTile) {
          const int64_t size = min64(kTile, p.size - j);
          alignas(64) A d[kBlock];
          const auto element = [&](int64_t i) __attribute__((always_inline)) {
            d[i] = L::data_derivative(v.template scale<kScale>(j, i), v.x[j + i]);
          };
          DVAE_FOR_BLOCK(size, element)
          for (int64_t i = 0; i < size; ++i) scale_sum[j + i] += weight * static_cast<double>(d[i]);
        }
      }
      weight = 0;
      any = false;
    }
  }
};

// out = weight · d log p / d params of one row (out may be the row itself), and the scale's.
template <class L, class T, ScaleKind kScale, bool kBias>
DVAE_HD void row_gradient(const LogWeightParams& p, const RowView<T>& v, accumulate_t<T> weight,
                          T* out, T* out_scale, double* scale_sum) {
  using A = accumulate_t<T>;
  if (weight == A(0)) {
    // A weight of 0 stops a non-finite derivative: 0 · inf would be NaN.
    for (int64_t j = 0; j < p.size; ++j) store(out[j], A(0));
    if constexpr (kScale == ScaleKind::kFull) {
      for (int64_t j = 0; j < p.size; ++j) store(out_scale[j], A(0));
    }
    return;
  }
  for (int64_t j = 0; j < p.size; j += kTile) {
    const int64_t n = min64(kTile, p.size - j);
    if constexpr (L::kHasScale) {
      alignas(64) A d_scale[kBlock];
      const auto element = [&](int64_t i) __attribute__((always_inline)) {
        A d_mean;
        L::template derivative<kScale>(v.template param<kBias>(j + i),
                                       v.template scale<kScale>(j, i), v.x[j + i], d_mean,
                                       d_scale[i]);
        store(out[j + i], weight * d_mean);
        d_scale[i] = weight * d_scale[i];
      };
      DVAE_FOR_BLOCK(n, element)
      if constexpr (kScale == ScaleKind::kFull) {
        for (int64_t i = 0; i < n; ++i) store(out_scale[j + i], d_scale[i]);
      } else if (scale_sum != nullptr) {
        for (int64_t i = 0; i < n; ++i) scale_sum[j + i] += static_cast<double>(d_scale[i]);
      }
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        store(out[j + i], weight * L::derivative(v.template param<kBias>(j + i), v.x[j + i]));
      }
    }
  }
}

template <class T>
DVAE_HD accumulate_t<T> ratio_of(const LogWeightParams& p, int64_t row) {
  using A = accumulate_t<T>;
  return p.log_ratio != nullptr ? *at<A>(p.log_ratio, row) : A(0);
}

template <class L, class T, ScaleKind kScale, bool kBias>
void log_weights_as(const LogWeightParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  DataTerm<L, T, kScale> data;
  for (int64_t row = begin; row < end; ++row) {
    const RowView<T> v = row_view<T>(p, row);
    const A density = row_density<L, T, kScale, kBias, false>(p, v, static_cast<T*>(nullptr));
    *at<A>(p.log_w, row) = ratio_of<T>(p, row) + (density + data.of(p, v, row));
  }
}

template <class L, class T, ScaleKind kScale, bool kBias>
void log_weights_backward_as(const LogWeightParams& p, double* scale_sum, int64_t begin,
                             int64_t end) {
  using A = accumulate_t<T>;
  DataGradient<L, T, kScale> data{p, scale_sum};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t to = (row - p.first_row) * p.size;
    const A weight = *at<A>(p.grad, row);
    row_gradient<L, T, kScale, kBias>(p, row_view<T>(p, row), weight, at<T>(p.grad_params, to),
                                      at<T>(p.grad_scale, to), scale_sum);
    data.add(row, weight);
  }
  data.flush();
}

// First sweep of the fused loss: log-weights, and where the dtype can hold it exactly enough the
// bare derivative, so that the second sweep is one multiplication instead of an exponential.
template <class L, class T>
constexpr bool kSweepLeavesDerivative = !L::kHasScale && sizeof(T) == sizeof(accumulate_t<T>);

template <class L, class T, ScaleKind kScale>
void iwae_sweep_as(const LogWeightParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  DataTerm<L, T, kScale> data;
  for (int64_t row = begin; row < end; ++row) {
    const RowView<T> v = row_view<T>(p, row);
    const A density = row_density<L, T, kScale, false, kSweepLeavesDerivative<L, T>>(
        p, v, at<T>(p.grad_params, row * p.size));
    *at<A>(p.log_w, row) = ratio_of<T>(p, row) + (density + data.of(p, v, row));
  }
}

template <class L, class T, ScaleKind kScale>
void iwae_scale_as(const LogWeightParams& p, double* scale_sum, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  DataGradient<L, T, kScale> data{p, scale_sum};
  for (int64_t row = begin; row < end; ++row) {
    const A weight = *at<A>(static_cast<const void*>(p.log_w), row) * static_cast<A>(p.multiplier);
    data.add(row, weight);
    T* out = at<T>(p.grad_params, row * p.size);
    if constexpr (kSweepLeavesDerivative<L, T>) {
      for (int64_t j = 0; j < p.size; ++j) store(out[j], weight * load(out[j]));
    } else {
      row_gradient<L, T, kScale, false>(p, row_view<T>(p, row), weight, out,
                                        at<T>(p.grad_scale, row * p.size), scale_sum);
    }
  }
  data.flush();
}

// --- logsumexp --------------------------------------------------------------------------------

// kWeights: leaves e^(v − max) in out.
template <class A, bool kWeights>
DVAE_HD MaxSum<A> max_and_sum(const A* v, int64_t n, A* out) {
  alignas(64) A top[kLanes];
  alignas(64) A sum[kLanes] = {};
  fill(top, kLanes, -infinity<A>());
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t m = min64(kLanes, n - j);
    for (int64_t i = 0; i < m; ++i) top[i] = v[j + i] > top[i] ? v[j + i] : top[i];
  }
  A max = top[0];
  for (int i = 1; i < kLanes; ++i) max = top[i] > max ? top[i] : max;
  // NaN compared false above, and shows up in the sum. A maximum of +inf, which needs each element
  // looked at, has a loop of its own: the choice inside would keep the usual one scalar.
  const auto accumulate = [&](auto term) __attribute__((always_inline)) {
    for (int64_t j = 0; j < n; j += kLanes) {
      const int64_t m = min64(kLanes, n - j);
#pragma GCC ivdep
      for (int64_t i = 0; i < m; ++i) {
        const A value = v[j + i];
        if constexpr (kWeights) out[j + i] = shifted_exp(value, max);
        sum[i] = sum[i] + term(value);
      }
    }
  };
  if (max == infinity<A>()) {
    accumulate([&](A value) __attribute__((always_inline)) { return sum_term(value, max); });
  } else {
    accumulate([&](A value) __attribute__((always_inline)) { return shifted_exp(value, max); });
  }
  return {max, sum_lanes(sum)};
}

template <class T>
void iwae_normalise(const LogWeightParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    A* w = at<A>(p.log_w, row * p.samples);
    const MaxSum<A> s = max_and_sum<A, true>(w, p.samples, w);
    *at<A>(p.bound, row) = bound_of(s, p.samples);
    const A inverse = inverse_of(s);
    for (int64_t k = 0; k < p.samples; ++k) w[k] = w[k] * inverse;
  }
}

template <class T>
void logmeanexp(const LogMeanExpParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const A* v = at<A>(p.log_w, row * p.samples);
    *at<A>(p.bound, row) =
        bound_of(max_and_sum<A, false>(v, p.samples, static_cast<A*>(nullptr)), p.samples);
  }
}

// g w̃, w̃ = e^(v − max)/Σ e^(v − max). Not e^(v − bound)/K: the bound is rounded to its own size,
// which at −3000 nats is 1e-4 of every weight.
template <class T>
void logmeanexp_backward(const LogMeanExpParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const A grad = *at<A>(p.grad, row);
    A* out = at<A>(p.grad_log_w, row * p.samples);
    const MaxSum<A> s = max_and_sum<A, true>(at<A>(p.log_w, row * p.samples), p.samples, out);
    const A factor = grad * inverse_of(s);
    for (int64_t k = 0; k < p.samples; ++k) out[k] = grad == A(0) ? A(0) : factor * out[k];
  }
}

template <class T>
void lse_update(const double* state, const void* log_w, int64_t samples, double* out, int64_t begin,
                int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t row = begin; row < end; ++row) {
    const A* v = at<A>(log_w, row * samples);
    const double* from = state + row * 5;
    double* to = out + row * 5;
    LogSumExp chunk;
    bool nan = false;
    for (int64_t k = 0; k < samples; ++k) {
      const double w = static_cast<double>(v[k]);
      chunk.max = w > chunk.max ? w : chunk.max;
      nan = nan || w != w;
    }
    if (nan) chunk.max = quiet_nan<double>();
    for (int64_t k = 0; k < samples; ++k) add_below_maximum(chunk, static_cast<double>(v[k]));
    LogSumExp s;
    s.max = from[0], s.s1 = from[1], s.s2 = from[2], s.sum = from[3], s.count = from[4];
    if (samples > 0) s.merge(chunk);
    to[0] = s.max, to[1] = s.s1, to[2] = s.s2, to[3] = s.sum, to[4] = s.count;
  }
}

// --- mixture of posteriors --------------------------------------------------------------------

// Working memory of one call, aligned for vectors. One a call: between two a failure would have to
// free the first, which takes exception tables with symbols outside the ISA's namespace.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t n)
      : data_(static_cast<A*>(::operator new(static_cast<size_t>(n) * sizeof(A), kAlign))) {}
  ~Scratch() { ::operator delete(data_, kAlign); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  A* at(int64_t i) const { return data_ + i; }

 private:
  static constexpr std::align_val_t kAlign{64};
  A* data_;
};

DVAE_HD int64_t whole_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// A row of n elements as `width` of them, whole groups of lanes; 0 past the end.
template <class T>
DVAE_HD void read_row(const T* from, int64_t n, int64_t width, accumulate_t<T>* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
  fill(to + n, width - n, accumulate_t<T>(0));
}

// Σ term(v) over a row of whole groups of lanes.
template <class A, class F>
DVAE_HD A sum_row(const A* v, int64_t width, const F& term) {
  alignas(64) A sum[kLanes] = {};
  for (int64_t j = 0; j < width; j += kLanes) {
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) sum[i] = sum[i] + term(v[j + i]);
  }
  return sum_lanes(sum);
}

// The M components of one example, in rows of `width`: past the end ε is 0.
template <class T>
struct Components {
  using A = accumulate_t<T>;
  const int64_t count, width;
  A *const mean, *const inverse_std, *const log_var;  // log_var: the sum over dimensions
  int64_t example = -1;

  static DVAE_HD int64_t row_width(const MixtureParams& p) { return whole_lanes(p.size); }
  static DVAE_HD int64_t elements(const MixtureParams& p) {
    return 2 * p.components * row_width(p) + whole_lanes(p.components);
  }
  // In `elements` of memory.
  DVAE_HD Components(const MixtureParams& p, A* memory)
      : count(p.components),
        width(row_width(p)),
        mean(memory),
        inverse_std(memory + count * width),
        log_var(memory + 2 * count * width) {}

  DVAE_HD void read(const MixtureParams& p, int64_t of_example) {
    if (of_example == example) return;
    example = of_example;
    for (int64_t m = 0; m < count; ++m) {
      const int64_t from = (m * p.examples + example) * p.size, to = m * width;
      read_row(at<T>(p.mean, from), p.size, width, mean + to);
      A* const power = inverse_std + to;
      read_row(at<T>(p.log_var, from), p.size, width, power);
      log_var[m] = sum_row(power, width, [](A v) { return v; });
      for (int64_t i = 0; i < p.size; ++i) power[i] = exp(A(-0.5) * power[i]);
    }
  }
};

template <class T>
void mixture_log_ratio(const MixtureParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const int64_t elements = Components<T>::elements(p);
  const Scratch<A> scratch(Components<T>::row_width(p) + elements);
  Components<T> c(p, scratch.at(0));
  A* const z = scratch.at(elements);
  for (int64_t r = begin; r < end; ++r) {
    c.read(p, r / p.samples);
    read_row(at<T>(p.z, r * p.size), p.size, c.width, z);
    const A z_squares = sum_row(z, c.width, [](A v) { return v * v; });
    A* w = at<A>(p.weights, r * c.count);
    for (int64_t m = 0; m < c.count; ++m) {
      const A* mean = c.mean + m * c.width;
      const A* inverse_std = c.inverse_std + m * c.width;
      alignas(64) A squares[kLanes] = {};
      for (int64_t j = 0; j < c.width; j += kLanes) {
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) {
          const A e = DiagonalNormal::standardise(z[j + i], mean[j + i], inverse_std[j + i]);
          squares[i] = squares[i] + e * e;
        }
      }
      w[m] = -DiagonalNormal::log_ratio_of_sums(sum_lanes(squares), c.log_var[m], z_squares);
    }
    const MaxSum<A> s = max_and_sum<A, true>(w, c.count, w);
    *at<A>(p.log_ratio, r) = -bound_of(s, c.count);
    const A inverse = inverse_of(s);
    for (int64_t m = 0; m < c.count; ++m) w[m] = w[m] * inverse;
  }
}

template <class T>
void mixture_log_ratio_backward(const MixtureParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  // Of each component Σ g ε, Σ g ε² and Σ g over samples, in two levels.
  const int64_t n = p.components * Components<T>::row_width(p), sums = 2 * n + p.components;
  const int64_t elements = Components<T>::elements(p);
  const Scratch<A> scratch(2 * sums + p.components + Components<T>::row_width(p) + elements);
  Components<T> c(p, scratch.at(0));
  A *const z = scratch.at(elements), *const noise = z + c.width, *const squares = noise + n;
  A *const grads = squares + n, *const total = noise + sums, *const g = total + sums;
  for (int64_t example = begin; example < end; ++example) {
    c.read(p, example);
    fill(noise, 2 * sums, A(0));
    for (int64_t k = 0; k < p.samples; ++k) {
      const int64_t r = example * p.samples + k;
      const A grad = *at<A>(p.grad, r);
      const A* w = at<A>(static_cast<const void*>(p.weights), r * c.count);
      read_row(at<T>(p.z, r * p.size), p.size, c.width, z);
      A sum_g = 0;
      for (int64_t first = 0; first < c.count; first += kSumRows) {
        A part = 0;
        for (int64_t m = first; m < min64(first + kSumRows, c.count); ++m) {
          g[m] = grad * w[m];
          grads[m] = grads[m] + g[m];
          part = part + g[m];
        }
        sum_g = sum_g + part;
      }
      T* out = at<T>(p.grad_z, r * p.size);
      for (int64_t j = 0; j < c.width; j += kLanes) {
        alignas(64) A total_z[kLanes] = {};
        for (int64_t first = 0; first < c.count; first += kSumRows) {
          alignas(64) A d_z[kLanes] = {};
          const int64_t last = min64(first + kSumRows, c.count);
          for (int64_t m = first; m < last; ++m) {
            const A weight = g[m];
            // A weight of 0 stops a non-finite derivative: 0 · inf would be NaN.
            if (weight == A(0)) continue;
            const int64_t from = m * c.width + j;
            const A *const mean = c.mean + from, *const inverse_std = c.inverse_std + from;
            A *const sum = noise + from, *const sum_squares = squares + from;
#pragma GCC ivdep
            for (int i = 0; i < kLanes; ++i) {
              d_z[i] =
                  d_z[i] + DiagonalNormal::accumulate_component(
                               weight, z[j + i], mean[i], inverse_std[i], sum[i], sum_squares[i]);
            }
          }
          for (int i = 0; i < kLanes; ++i) total_z[i] = total_z[i] + d_z[i];
        }
        const int64_t stop = min64(kLanes, p.size - j);
        for (int64_t i = 0; i < stop; ++i) store(out[j + i], total_z[i] - z[j + i] * sum_g);
      }
      if ((k + 1) % kSumRows == 0) fold(noise, total, sums);
    }
    fold(noise, total, sums);
    for (int64_t m = 0; m < c.count; ++m) {
      const int64_t to = (m * p.examples + example) * p.size, from = m * c.width;
      T* d_mean = at<T>(p.grad_mean, to);
      T* d_log_var = at<T>(p.grad_log_var, to);
      for (int64_t i = 0; i < p.size; ++i) {
        store(d_mean[i],
              DiagonalNormal::component_mean_gradient(total[from + i], c.inverse_std[from + i]));
        store(d_log_var[i],
              DiagonalNormal::component_log_var_gradient(total[2 * n + m], total[n + from + i]));
      }
    }
  }
}

// --- run-time choice of scale and bias --------------------------------------------------------

// Calls body with ScaleKind and "has bias" as compile-time constants, as far as L has them.
#define DVAE_WITH_SCALE(L, kind, K, ...)        \
  if constexpr (!L::kHasScale) {                \
    constexpr ScaleKind K = ScaleKind::kNone;   \
    __VA_ARGS__;                                \
  } else if ((kind) == ScaleKind::kFull) {      \
    constexpr ScaleKind K = ScaleKind::kFull;   \
    __VA_ARGS__;                                \
  } else {                                      \
    constexpr ScaleKind K = ScaleKind::kShared; \
    __VA_ARGS__;                                \
  }

template <class L, class T>
void log_weights(const LogWeightParams& p, ScaleKind kind, int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, {
    if (p.bias != nullptr) {
      log_weights_as<L, T, K, true>(p, begin, end);
    } else {
      log_weights_as<L, T, K, false>(p, begin, end);
    }
  })
}

template <class L, class T>
void log_weights_backward(const LogWeightParams& p, ScaleKind kind, double* scale_sum,
                          int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, {
    if (p.bias != nullptr) {
      log_weights_backward_as<L, T, K, true>(p, scale_sum, begin, end);
    } else {
      log_weights_backward_as<L, T, K, false>(p, scale_sum, begin, end);
    }
  })
}

template <class L, class T>
void iwae_sweep(const LogWeightParams& p, ScaleKind kind, int64_t begin, int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, iwae_sweep_as<L, T, K>(p, begin, end))
}

template <class L, class T>
void iwae_scale(const LogWeightParams& p, ScaleKind kind, double* scale_sum, int64_t begin,
                int64_t end) {
  DVAE_WITH_SCALE(L, kind, K, iwae_scale_as<L, T, K>(p, scale_sum, begin, end))
}

// An example's K rows are read twice while they lie in L2.
template <class L, class T>
void iwae(const LogWeightParams& p, ScaleKind kind, double* scale_sum, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const int64_t row = n * p.samples;
    iwae_sweep<L, T>(p, kind, row, row + p.samples);
    iwae_normalise<T>(p, n, n + 1);
    iwae_scale<L, T>(p, kind, scale_sum, row, row + p.samples);
  }
}

// --- elementwise ------------------------------------------------------------------------------

template <class T>
void softplus_forward(const void* in, void* out, int64_t begin, int64_t end) {
  const T* from = static_cast<const T*>(in);
  T* to = static_cast<T*>(out);
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) store(to[i], softplus(load(from[i])));
}

template <class T>
void softplus_backward(const void* grad, const void* out, void* to, int64_t begin, int64_t end) {
  const T* g = static_cast<const T*>(grad);
  const T* y = static_cast<const T*>(out);
  T* d = static_cast<T*>(to);
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) store(d[i], load(g[i]) * one_minus_exp(load(y[i])));
}

// f(in Wᵀ + b); the non-linearity while the rows are still in cache.
template <class T>
void dense(const DenseParams& p) {
  T* out = static_cast<T*>(p.out);
  multiply_panels(static_cast<const T*>(p.in), static_cast<const T*>(p.panels), p.rows, p.inputs,
                  p.outputs, out);
  const int64_t n = p.rows * p.outputs;
  const auto each = [&](auto f) __attribute__((always_inline)) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) out[i] = f(out[i]);
  };
  switch (p.activation) {
    case Activation::kNone:
      break;
    case Activation::kSoftplus:
      return each([](T x) __attribute__((always_inline)) { return softplus(x); });
    case Activation::kRelu:
      return each([](T x) __attribute__((always_inline)) { return x < T(0) ? T(0) : x; });
    case Activation::kTanh:
      return each([](T x) __attribute__((always_inline)) { return tanh(x); });
  }
}

template <class T>
void pack_panels(const void* weight, const void* bias, int64_t inputs, int64_t outputs,
                 void* panels) {
  pack(static_cast<const T*>(weight), static_cast<const T*>(bias), inputs, outputs,
       static_cast<T*>(panels));
}

template <class T>
void scale_by(void* grad, double factor, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  T* g = static_cast<T*>(grad);
  const A f = static_cast<A>(factor);
  for (int64_t i = begin; i < end; ++i) store(g[i], f * load(g[i]));
}

template <class T>
void add_column_sums(const void* in, int64_t rows, int64_t columns, double* out, int64_t begin,
                     int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t j = begin; j < end; j += kTile) {
    const int64_t n = min64(kTile, end - j);
    for (int64_t first = 0; first < rows; first += kSumRows) {
      alignas(64) A sum[kBlock] = {};
      for (int64_t r = first; r < min64(first + kSumRows, rows); ++r) {
        const T* row = at<T>(in, r * columns + j);
        for (int64_t i = 0; i < n; ++i) sum[i] = sum[i] + load(row[i]);
      }
      for (int64_t i = 0; i < n; ++i) out[j + i] += static_cast<double>(sum[i]);
    }
  }
}

#define DVAE_DTYPES(f) {f<float>, f<double>, f<BFloat16>, f<Half>}
#define DVAE_DTYPES_OF(L, name, f) {f<L, float>, f<L, double>, f<L, BFloat16>, f<L, Half>},
#define DVAE_LIKELIHOODS(f) {DVAE_LIKELIHOOD_LIST(DVAE_DTYPES_OF, f)}

constexpr Kernels kTable = {
    DVAE_DTYPES(corrupt),
    DVAE_DTYPES(corrupt_backward),
    DVAE_DTYPES(corrupt_backward_std),
    DVAE_DTYPES(sample_latent),
    DVAE_DTYPES(sample_latent_backward),
    DVAE_DTYPES(latent_log_ratio),
    DVAE_DTYPES(latent_log_ratio_backward),
    DVAE_DTYPES(mixture_log_ratio),
    DVAE_DTYPES(mixture_log_ratio_backward),
    DVAE_LIKELIHOODS(log_weights),
    DVAE_LIKELIHOODS(log_weights_backward),
    DVAE_LIKELIHOODS(iwae),
    DVAE_LIKELIHOODS(iwae_sweep),
    DVAE_DTYPES(iwae_normalise),
    DVAE_LIKELIHOODS(iwae_scale),
    DVAE_DTYPES(logmeanexp),
    DVAE_DTYPES(logmeanexp_backward),
    DVAE_DTYPES(lse_update),
    {kPanel<float>, kPanel<double>, 0, 0},
    {pack_panels<float>, pack_panels<double>, nullptr, nullptr},
    {dense<float>, dense<double>, nullptr, nullptr},
    DVAE_DTYPES(softplus_forward),
    DVAE_DTYPES(softplus_backward),
    DVAE_DTYPES(scale_by),
    DVAE_DTYPES(add_column_sums),
};

#undef DVAE_FOR_BLOCK
#undef DVAE_WITH_SCALE
#undef DVAE_DTYPES
#undef DVAE_DTYPES_OF
#undef DVAE_LIKELIHOODS

}  // namespace
}  // namespace dvae::cpu
