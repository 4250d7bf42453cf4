#include "masked.h"

#include <algorithm>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "../core/likelihoods.h"
#include "buffer.h"

namespace dvae::cpu {
namespace {

// Bytes of rows at once: few, which stay in the first-level cache; more where a kernel makes
// something once for all rows of an example.
constexpr int64_t kRowBytes = 8 << 10;
constexpr int64_t kDataBytes = 256 << 10;

DType sums_of(DType dtype) { return dtype == DType::kFloat64 ? dtype : DType::kFloat32; }

// The operands of one example at a time, of its observed dimensions alone.
class Observed {
 public:
  Observed(const Mask& mask, DType dtype, ScaleKind kind, const DecoderParams& p)
      : mask_(mask),
        kernels_(kernels()),
        dtype_(static_cast<int>(dtype)),
        sums_(static_cast<int>(sums_of(dtype))),
        element_(size_of(dtype)),
        sum_size_(size_of(sums_of(dtype))),
        p_(p),
        shared_(kind == ScaleKind::kShared),
        seen_(buffer(mask.size * sum_size_)),
        x_(buffer(mask.size * sum_size_)),
        bias_(buffer(p.bias != nullptr ? mask.size * element_ : 0)),
        scale_(buffer(shared_ ? mask.size * sum_size_ : 0)),
        row_(buffer(mask.size * static_cast<int64_t>(sizeof(double)))) {}

  size_t mask_of(int64_t n) const { return static_cast<size_t>(n % mask_.examples); }
  // The rows of example n as they are, of which the kernel leaves out elements.
  void look(int64_t n, DecoderParams& to) const {
    kernels_.expand[dtype_](mask_.observed + n % mask_.examples * mask_.size, mask_.size,
                            seen_.get());
    to.seen = seen_.get();
    to.count = mask_.count(n);
    if (!mask_.log_scales.empty()) to.log_scale = &mask_.log_scales[mask_of(n)];
  }
  // What the rows of example n share, compacted.
  void share(int64_t n, DecoderParams& to) {
    observed_ = mask_.observed + n % mask_.examples * mask_.size;
    count_ = mask_.count(n);
    to.size = count_;
    to.examples = 1;
    to.x = sums(bytes(p_.x) + n % p_.examples * mask_.size * sum_size_, x_);
    if (p_.bias != nullptr) {
      kernels_.compact[dtype_](p_.bias, observed_, mask_.size, bias_.get());
      to.bias = bias_.get();
    }
    if (!shared_) return;
    if (p_.scale_stride != 0) to.scale = sums(bytes(p_.scale), scale_);
    if (!mask_.log_scales.empty()) to.log_scale = &mask_.log_scales[mask_of(n)];
  }

  // `rows` rows of params or of a scale, one after another; `to` may be `from`, has room for one
  // whole row more than it gets, or for all as whole rows.
  void compact(const void* from, int64_t rows, void* to) const {
    for (int64_t i = 0; i < rows; ++i) {
      kernels_.compact[dtype_](bytes(from) + i * mask_.size * element_, observed_, mask_.size,
                               static_cast<char*>(to) + i * count_ * element_);
    }
  }
  // Back, in place, with zeros elsewhere.
  void spread(void* data, int64_t rows) const {
    for (int64_t i = rows - 1; i >= 0; --i) {
      kernels_.spread[dtype_](bytes(data) + i * count_ * element_, observed_, mask_.size, count_,
                              static_cast<char*>(data) + i * mask_.size * element_);
    }
  }
  // total, of every dimension, += part.
  void add(const double* part, double* total) const {
    double* row = static_cast<double*>(row_.get());
    kernels_.spread[static_cast<int>(DType::kFloat64)](part, observed_, mask_.size, count_, row);
    for (int64_t j = 0; j < mask_.size; ++j) total[j] += row[j];
  }

  const char* whole_row(const void* base, int64_t row) const {
    return bytes(base) + row * mask_.size * element_;
  }
  int64_t row_bytes() const { return mask_.size * element_; }

 private:
  static const char* bytes(const void* p) { return static_cast<const char*>(p); }
  const void* sums(const void* from, const Buffer& to) const {
    kernels_.compact[sums_](from, observed_, mask_.size, to.get());
    return to.get();
  }

  const Mask& mask_;
  const Kernels& kernels_;
  const int dtype_, sums_;
  const int64_t element_, sum_size_;
  const DecoderParams& p_;
  const bool shared_;
  const Buffer seen_, x_, bias_, scale_, row_;
  const uint8_t* observed_ = nullptr;
  int64_t count_ = 0;
};

// An example of which a larger part is observed is passed over, any other compacted: of gradients,
// which are spread again, that pays later. Nowhere where the kernels take no mask.
constexpr double kManyForward = 0.45, kManyBackward = 0.25;
double many(LikelihoodKind likelihood, DType dtype, double part) {
  return kernels().takes_mask[static_cast<int>(likelihood)][static_cast<int>(dtype)] ? part : 1.0;
}

// whole(first, last) for rows all of whose elements are observed; many(n, first, last) for the rows
// of each other example n of which more than that part is, few(n, first, last) of the others.
template <class Whole, class Many, class Few>
void by_example(const Mask& mask, double part, int64_t samples, int64_t begin, int64_t end,
                const Whole& whole, const Many& many, const Few& few) {
  const auto most_of_few = static_cast<int64_t>(part * static_cast<double>(mask.size));
  for (int64_t first = begin; first < end;) {
    const int64_t n = first / samples;
    int64_t last = std::min(end, (n + 1) * samples);
    if (mask.count(n) == mask.size) {
      while (last < end && mask.count(last / samples) == mask.size) {
        last = std::min(end, last + samples);
      }
      whole(first, last);
    } else if (mask.count(n) > most_of_few) {
      many(n, first, last);
    } else {
      few(n, first, last);
    }
    first = last;
  }
}

// Rows [first, last) of example n in the memory of their gradients: body(sums) makes of the
// observed elements' params their gradients.
template <class Params, class F>
void in_place(Observed& of, int64_t n, int64_t first, int64_t last, const Params& p, ScaleKind kind,
              double* scale_sum, Params& q, const F& body) {
  const int64_t rows = last - first, at = first - p.first_row;
  const auto take = [&](const void* from, void* grads) {
    void* to = const_cast<char*>(of.whole_row(grads, at));
    of.compact(of.whole_row(from, at), rows, to);
    return to;
  };
  of.share(n, q);
  q.first_row = first;
  q.params = q.grad_params = take(p.params, p.grad_params);
  if (kind == ScaleKind::kFull) q.scale = q.grad_scale = take(p.scale, p.grad_scale);
  std::vector<double> sums(static_cast<size_t>(scale_sum != nullptr ? p.size : 0));
  body(scale_sum != nullptr ? sums.data() : nullptr);
  of.spread(q.grad_params, rows);
  if (kind == ScaleKind::kFull) of.spread(q.grad_scale, rows);
  if (scale_sum != nullptr) of.add(sums.data(), scale_sum);
}

// A kernel of the table that makes gradients, over items of `rows` rows each: one, or an example's.
template <class Table, class Params>
void with_gradients(const Mask* mask, LikelihoodKind likelihood, DType dtype, const Table& table,
                    const Params& p, ScaleKind kind, double* scale_sum, int64_t rows, int64_t begin,
                    int64_t end) {
  const auto kernel = table[static_cast<int>(likelihood)][static_cast<int>(dtype)];
  if (mask == nullptr) return kernel(p, kind, scale_sum, begin, end);
  Observed of(*mask, dtype, kind, p);
  Params looked = p;
  by_example(
      *mask, many(likelihood, dtype, kManyBackward), rows == 1 ? p.samples : 1, begin, end,
      [&](int64_t first, int64_t last) { kernel(p, kind, scale_sum, first, last); },
      [&](int64_t n, int64_t first, int64_t last) {
        of.look(n, looked);
        kernel(looked, kind, scale_sum, first, last);
      },
      [&](int64_t n, int64_t first, int64_t last) {
        Params q = p;
        in_place(of, n, first * rows, last * rows, p, kind, scale_sum, q,
                 [&](double* sums) { kernel(q, kind, sums, first, last); });
      });
}

int64_t count_of(const uint8_t* row, int64_t size) {
  int64_t missing = 0, j = 0;
#if defined(__SSE2__)
  // Sixteen counts in bytes, which 255 comparisons do not overflow.
  const __m128i zero = _mm_setzero_si128();
  for (int64_t whole = size / 16 * 16; j < whole;) {
    __m128i part = zero;
    for (const int64_t stop = std::min<int64_t>(whole, j + 255 * 16); j < stop; j += 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + j));
      part = _mm_sub_epi8(part, _mm_cmpeq_epi8(bytes, zero));
    }
    const __m128i sums = _mm_sad_epu8(part, zero);
    missing += _mm_cvtsi128_si64(sums) + _mm_cvtsi128_si64(_mm_unpackhi_epi64(sums, sums));
  }
#endif
  for (; j < size; ++j) missing += row[j] == 0;
  return size - missing;
}

}  // namespace

Mask::Mask(const uint8_t* observed_in, int64_t examples_in, int64_t size_in,
           const std::vector<double>& log_scale)
    : observed(observed_in),
      examples(examples_in),
      size(size_in),
      counts(static_cast<size_t>(examples_in)) {
  const uint8_t* row = observed;
  for (int64_t& count : counts) {
    count = count_of(row, size);
    all = all && count == size;
    row += size;
  }
  if (all || log_scale.empty()) return;
  log_scales.reserve(counts.size());
  for (size_t n = 0; n < counts.size(); ++n) {
    const uint8_t* seen = observed + static_cast<int64_t>(n) * size;
    if (counts[n] == 0) {
      log_scales.push_back(0);  // of a scale of 0, inf or NaN too
    } else if (log_scale.size() == 1) {
      log_scales.push_back(log_scale[0] * static_cast<double>(counts[n]));
    } else {
      log_scales.push_back(kernels().sum_observed(log_scale.data(), seen, size));
    }
  }
}

void log_weights(const Mask* mask, LikelihoodKind likelihood, DType dtype, const LogWeightParams& p,
                 ScaleKind kind, int64_t begin, int64_t end) {
  const auto kernel = kernels().log_weights[static_cast<int>(likelihood)][static_cast<int>(dtype)];
  if (mask == nullptr) return kernel(p, kind, begin, end);
  Observed of(*mask, dtype, kind, p);
  const int64_t at_once = has_data_term(likelihood) ? kDataBytes : kRowBytes;
  const int64_t most = std::clamp<int64_t>(at_once / std::max<int64_t>(1, of.row_bytes()), 1,
                                           std::max<int64_t>(1, p.samples));
  const int64_t room = (most + 1) * of.row_bytes();
  const Buffer params = buffer(room), scale = buffer(kind == ScaleKind::kFull ? room : 0);
  LogWeightParams looked = p;
  by_example(
      *mask, many(likelihood, dtype, kManyForward), p.samples, begin, end,
      [&](int64_t first, int64_t last) { kernel(p, kind, first, last); },
      [&](int64_t n, int64_t first, int64_t last) {
        of.look(n, looked);
        kernel(looked, kind, first, last);
      },
      [&](int64_t n, int64_t first, int64_t last) {
        LogWeightParams q = p;
        of.share(n, q);
        q.params = params.get();
        for (int64_t row = first; row < last; row += most) {
          const int64_t stop = std::min(last, row + most), at = row - p.first_row;
          of.compact(of.whole_row(p.params, at), stop - row, params.get());
          if (kind == ScaleKind::kFull) {
            of.compact(of.whole_row(p.scale, at), stop - row, scale.get());
            q.scale = scale.get();
          }
          q.first_row = row;
          kernel(q, kind, row, stop);
        }
      });
}

void log_weights_backward(const Mask* mask, LikelihoodKind likelihood, DType dtype,
                          const LogWeightGradParams& p, ScaleKind kind, double* scale_sum,
                          int64_t begin, int64_t end) {
  with_gradients(mask, likelihood, dtype, kernels().log_weights_backward, p, kind, scale_sum, 1,
                 begin, end);
}

void iwae(const Mask* mask, LikelihoodKind likelihood, DType dtype, const IwaeParams& p,
          ScaleKind kind, double* scale_sum, int64_t begin, int64_t end) {
  with_gradients(mask, likelihood, dtype, kernels().iwae, p, kind, scale_sum, p.samples, begin,
                 end);
}

}  // namespace dvae::cpu
