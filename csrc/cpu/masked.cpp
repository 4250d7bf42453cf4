#include "masked.h"

#include <algorithm>
#include <optional>

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
  Observed(const Mask& mask, LikelihoodKind likelihood, DType dtype, ScaleKind kind,
           const DecoderParams& p)
      : mask_(mask),
        likelihood_(likelihood),
        kernels_(kernels()),
        dtype_(static_cast<int>(dtype)),
        sums_(static_cast<int>(sums_of(dtype))),
        element_(size_of(dtype)),
        sum_size_(size_of(sums_of(dtype))),
        p_(p),
        shared_(kind == ScaleKind::kShared),
        x_(buffer(mask.size * sum_size_)),
        bias_(buffer(p.bias != nullptr ? mask.size * element_ : 0)),
        scale_(buffer(shared_ ? mask.size * sum_size_ : 0)),
        constants_(buffer(mask.constants != nullptr ? mask.size * sum_size_ : 0)),
        row_(buffer(mask.size * static_cast<int64_t>(sizeof(double)))) {}

  // What the rows of example n share, compacted.
  void share(int64_t n, int64_t count, DecoderParams& to) {
    observed_ = mask_.row(n);
    count_ = count;
    to.size = count_;
    to.examples = 1;
    to.x = sums(bytes(p_.x) + n % p_.examples * mask_.size * sum_size_, x_);
    if (p_.bias != nullptr) {
      kernels_.compact[dtype_](p_.bias, observed_, mask_.size, bias_.get());
      to.bias = bias_.get();
    }
    if (!shared_) return;
    if (p_.scale_stride != 0) to.scale = sums(bytes(p_.scale), scale_);
    if (mask_.constants != nullptr) add_constants(to);
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

 private:
  static const char* bytes(const void* p) { return static_cast<const char*>(p); }
  // Σ log scale over what is observed: what row_constant takes.
  void add_constants(DecoderParams& to) {
    if (p_.scale_stride != 0) {
      log_scale_ = kernels_.sum[sums_](sums(mask_.constants, constants_), count_);
    } else {  // of none 0, of a scale of 0, inf or NaN too
      const double one = kernels_.sum[sums_](mask_.constants, 1);
      log_scale_ = count_ == 0 ? 0 : one * static_cast<double>(count_);
    }
    log_scale_ += row_constant(likelihood_, count_, 0.0);
    to.log_scale = &log_scale_;
  }
  const void* sums(const void* from, const Buffer& to) const {
    kernels_.compact[sums_](from, observed_, mask_.size, to.get());
    return to.get();
  }

  const Mask& mask_;
  const LikelihoodKind likelihood_;
  const Kernels& kernels_;
  const int dtype_, sums_;
  const int64_t element_, sum_size_;
  const DecoderParams& p_;
  const bool shared_;
  const Buffer x_, bias_, scale_, constants_, row_;
  const uint8_t* observed_ = nullptr;
  int64_t count_ = 0;
  double log_scale_ = 0;
};

// An example of which a larger part is observed is passed over, any other compacted, which costs
// less the more work an element is: of gradients, which are spread again, that pays later. Nowhere
// where the kernels take no mask; everywhere, uncounted, where an example has few rows, for which
// counting and compacting would be a tenth of the work and more, and where that is the rule: of a
// scale that rows share, compacted beside x, if no gradient is made.
double many(LikelihoodKind likelihood, DType dtype, ScaleKind kind, bool gradient,
            const DecoderParams& p) {
  constexpr int64_t kFewRows = 4;
  const bool light = is_light(likelihood);
  if (!kernels().takes_mask[static_cast<int>(dtype)]) return 1;
  const bool little_won = p.samples < kFewRows || (kind == ScaleKind::kShared && !gradient);
  if (light) return little_won ? 0 : gradient ? 0.25 : 0.45;
  return gradient ? 0.6 : 0.85;
}

// p with the mask, of which the kernel leaves out elements.
template <class Params>
Params looked(const Mask& mask, const Params& p) {
  Params to = p;
  to.seen = mask.observed;
  to.seen_examples = mask.examples;
  to.row_constants = mask.constants;
  return to;
}

// whole(first, last) for rows all of whose elements are observed; many(first, last) for others of
// which more than that part is; few(n, count, first, last) for the rows of each example n of which
// only `count` elements are. part > 0.
template <class Whole, class Many, class Few>
void by_example(const Mask& mask, double part, int64_t samples, int64_t begin, int64_t end,
                const Whole& whole, const Many& many, const Few& few) {
  const auto most_of_few = static_cast<int64_t>(part * static_cast<double>(mask.size));
  const auto next = [&](int64_t row) { return std::min(end, (row / samples + 1) * samples); };
  int64_t count = begin < end ? mask.count(begin / samples) : 0;
  for (int64_t first = begin; first < end;) {
    const int64_t n = first / samples, own = count;
    const auto alike = [&](int64_t c) {
      return own == mask.size ? c == mask.size
                              : own > most_of_few && c > most_of_few && c != mask.size;
    };
    int64_t last = next(first);
    while (last < end) {
      count = mask.count(last / samples);
      if (!alike(count)) break;
      last = next(last);
    }
    if (own == mask.size) {
      whole(first, last);
    } else if (own > most_of_few) {
      many(first, last);
    } else {
      few(n, own, first, last);
    }
    first = last;
  }
}

// Rows [first, last) of example n in the memory of their gradients: body(sums) makes of the
// observed elements' params their gradients.
template <class Params, class F>
void in_place(Observed& of, int64_t n, int64_t count, int64_t first, int64_t last, const Params& p,
              ScaleKind kind, double* scale_sum, Params& q, const F& body) {
  const int64_t rows = last - first, at = first - p.first_row;
  const auto take = [&](const void* from, void* grads) {
    void* to = const_cast<char*>(of.whole_row(grads, at));
    of.compact(of.whole_row(from, at), rows, to);
    return to;
  };
  of.share(n, count, q);
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
  const Params with_mask = looked(*mask, p);
  const double part = many(likelihood, dtype, kind, true, p);
  if (part == 0) return kernel(with_mask, kind, scale_sum, begin, end);
  std::optional<Observed> made;  // where an example needs it
  by_example(
      *mask, part, rows == 1 ? p.samples : 1, begin, end,
      [&](int64_t first, int64_t last) { kernel(p, kind, scale_sum, first, last); },
      [&](int64_t first, int64_t last) { kernel(with_mask, kind, scale_sum, first, last); },
      [&](int64_t n, int64_t count, int64_t first, int64_t last) {
        if (!made) made.emplace(*mask, likelihood, dtype, kind, p);
        Params q = p;
        in_place(*made, n, count, first * rows, last * rows, p, kind, scale_sum, q,
                 [&](double* sums) { kernel(q, kind, sums, first, last); });
      });
}

}  // namespace

Mask::Mask(const uint8_t* observed_in, int64_t examples_in, int64_t size_in,
           const void* constants_in)
    : observed(observed_in),
      examples(examples_in),
      size(size_in),
      constants(constants_in),
      all(true) {
  // A look that ends where it is not so.
  const int64_t total = examples * size;
  for (int64_t j = 0, n = 64; all && j < total; j += n, n = std::min<int64_t>(2 * n, 4096)) {
    n = std::min(n, total - j);
    all = kernels().count_observed(observed + j, n) == n;
  }
}
int64_t Mask::count(int64_t n) const { return kernels().count_observed(row(n), size); }

void log_weights(const Mask* mask, LikelihoodKind likelihood, DType dtype, const LogWeightParams& p,
                 ScaleKind kind, int64_t begin, int64_t end) {
  const auto kernel = kernels().log_weights[static_cast<int>(likelihood)][static_cast<int>(dtype)];
  if (mask == nullptr) return kernel(p, kind, begin, end);
  const LogWeightParams with_mask = looked(*mask, p);
  const double part = many(likelihood, dtype, kind, false, p);
  if (part == 0) return kernel(with_mask, kind, begin, end);
  const int64_t at_once = has_data_term(likelihood) ? kDataBytes : kRowBytes;
  const int64_t row_bytes = mask->size * size_of(dtype);
  const int64_t most = std::clamp<int64_t>(at_once / std::max<int64_t>(1, row_bytes), 1,
                                           std::max<int64_t>(1, p.samples));
  const int64_t room = (most + 1) * row_bytes;
  std::optional<Observed> made;  // where an example needs it, and those
  Buffer params, scale;
  by_example(
      *mask, part, p.samples, begin, end,
      [&](int64_t first, int64_t last) { kernel(p, kind, first, last); },
      [&](int64_t first, int64_t last) { kernel(with_mask, kind, first, last); },
      [&](int64_t n, int64_t count, int64_t first, int64_t last) {
        if (!made) {
          made.emplace(*mask, likelihood, dtype, kind, p);
          params = buffer(room);
          if (kind == ScaleKind::kFull) scale = buffer(room);
        }
        Observed& of = *made;
        LogWeightParams q = p;
        of.share(n, count, q);
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
