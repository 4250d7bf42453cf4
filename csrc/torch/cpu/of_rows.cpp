// log_weights of likelihoods whose operator takes all of their parameters, and its gradient.
#include "../../cpu/categorical.h"
#include "../../cpu/zero_inflated.h"
#include "operators.h"
#include "rows.h"

namespace dvae::glue {
namespace {

template <class P>
struct OfRows {
  Decoder d;
  P p{};

  OfRows(In params, const char* name, MaybeIn scale, In x, Name likelihood, MaybeIn mask)
      : d(decoder_of_output(cpu_backend(), params, name, scale, x, likelihood, mask)) {
    STD_TORCH_CHECK(d.in.scalar_type() == sum_type(d.in), name, " must be float32 or float64");
    static_cast<DecoderParams&>(p) = d.p;
  }
  // run(begin, end) over rows, each of which it gives its log-weight.
  template <class F>
  Tensor log_weights(In log_ratio, const F& run) {
    const LogWeights made(d, log_ratio);
    p.log_ratio = made.p.log_ratio;
    p.log_w = made.p.log_w;
    for_rows(p.rows * p.samples, p.size, run);
    return made.out;
  }
};

struct Inflated : OfRows<ZeroInflatedParams> {
  Tensor logits;

  Inflated(In mean, In scale, In logits_in, In x, MaybeIn mask)
      : OfRows(mean, "mean", scale, x, "negative_binomial", mask),
        logits(read(logits_in, p.logits)) {
    d.on.check(logits, "zero_logits", {d.p.rows, d.p.samples, d.p.size}, d.in.scalar_type(), d.in);
  }
  void run(double* sums, int64_t begin, int64_t end) const {
    cpu::zero_inflated(mask_of(d), d.dtype, p, d.scale_kind, sums, begin, end);
  }
};

struct OfClasses : OfRows<CategoricalParams> {
  OfClasses(In logits, In x, int64_t classes, MaybeIn mask)
      : OfRows(logits, "logits", std::nullopt, x, "bernoulli", mask) {
    STD_TORCH_CHECK(classes > 0 && p.size % classes == 0, "classes must divide D = ", p.size,
                    ", got ", classes);
    p.classes = classes;
  }
  void operator()(int64_t begin, int64_t end) const {
    cpu::categorical(mask_of(d), d.dtype, p, begin, end);
  }
};

}  // namespace

Tensor zero_inflated(In mean, In scale, In logits, In x, In log_ratio, MaybeIn mask) {
  Inflated of(mean, scale, logits, x, mask);
  return of.log_weights(log_ratio, [&](int64_t begin, int64_t end) { of.run({}, begin, end); });
}

Three zero_inflated_backward(In grad_in, In mean, In scale, In logits, In x, MaybeIn mask) {
  Inflated of(mean, scale, logits, x, mask);
  const Tensor grad = read(of.d.rows(grad_in, "grad"), of.p.grad);
  const Tensor grad_mean = written(new_like(mean), of.p.grad_params);
  const Tensor grad_scale = of.d.scale_gradient();
  const Tensor grad_logits = written(new_like(logits), of.p.grad_logits);
  of.p.grad_scale = of.d.full_only(grad_scale);
  over_rows_with_scale(of.d, of.p.rows * of.p.samples, of.p.size, grad_scale,
                       [&](double* sums, int64_t begin, int64_t end) { of.run(sums, begin, end); });
  return {grad_mean, grad_scale, grad_logits};
}

Tensor categorical(In logits, In x, In log_ratio, int64_t classes, MaybeIn mask) {
  OfClasses of(logits, x, classes, mask);
  return of.log_weights(log_ratio, of);
}
Tensor categorical_backward(In grad_in, In logits, In x, int64_t classes, MaybeIn mask) {
  OfClasses of(logits, x, classes, mask);
  const Tensor grad = read(of.d.rows(grad_in, "grad"), of.p.grad);
  const Tensor out = written(new_like(logits), of.p.grad_params);
  for_rows(of.p.rows * of.p.samples, of.p.size, of);
  return out;
}

}  // namespace dvae::glue
