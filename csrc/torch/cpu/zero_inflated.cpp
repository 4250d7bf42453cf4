// log_weights of a zero-inflated negative binomial, and its gradient.
#include "../../cpu/zero_inflated.h"

#include "operators.h"
#include "rows.h"

namespace dvae::glue {
namespace {

struct Inflated {
  Decoder d;
  Tensor logits;
  ZeroInflatedParams p{};

  Inflated(In mean, In scale, In logits_in, In x, MaybeIn mask)
      : d(cpu_backend(), mean, "mean", mean.dim() > 0 ? mean.sizes()[mean.dim() - 1] : 0, true,
          scale, x, "negative_binomial", mask),
        logits(packed(logits_in)) {
    STD_TORCH_CHECK(d.in.scalar_type() == sum_type(d.in), "mean must be float32 or float64");
    d.on.check(logits, "zero_logits", {d.p.rows, d.p.samples, d.p.size}, d.in.scalar_type(), d.in);
    static_cast<DecoderParams&>(p) = d.p;
    p.params = d.in.const_data_ptr();
    p.logits = logits.const_data_ptr();
  }
  int64_t rows() const { return p.rows * p.samples; }
};

}  // namespace

Tensor zero_inflated(In mean, In scale, In logits, In x, In log_ratio, MaybeIn mask) {
  Inflated of(mean, scale, logits, x, mask);
  const Tensor ratio = read(of.d.rows(log_ratio, "log_ratio"), of.p.log_ratio);
  const Tensor out = written(new_like(ratio), of.p.log_w);
  for_rows(of.rows(), of.p.size, [&](int64_t begin, int64_t end) {
    cpu::zero_inflated(mask_of(of.d), of.d.dtype, of.p, of.d.scale_kind, nullptr, begin, end);
  });
  return out;
}

Three zero_inflated_backward(In grad_in, In mean, In scale, In logits, In x, MaybeIn mask) {
  Inflated of(mean, scale, logits, x, mask);
  const Tensor grad = read(of.d.rows(grad_in, "grad"), of.p.grad);
  const Tensor grad_mean = written(new_like(mean), of.p.grad_params);
  const Tensor grad_scale = of.d.scale_gradient();
  const Tensor grad_logits = written(new_like(logits), of.p.grad_logits);
  of.p.grad_scale = of.d.full_only(grad_scale);
  over_rows_with_scale(
      of.d, of.rows(), of.p.size, grad_scale, [&](double* sums, int64_t begin, int64_t end) {
        cpu::zero_inflated(mask_of(of.d), of.d.dtype, of.p, of.d.scale_kind, sums, begin, end);
      });
  return {grad_mean, grad_scale, grad_logits};
}

}  // namespace dvae::glue
