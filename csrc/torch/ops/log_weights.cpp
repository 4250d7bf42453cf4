// log_weights, its gradient, and the fused importance-weighted loss.
#include "decoder.h"

namespace dvae::glue {
namespace {

struct FusedLoss {
  Tensor bound, weights, grad_scale;
};

// The fused loss with its gradient left in `to`, which may be the decoder output itself.
FusedLoss fused_loss(const Decoder& d, In log_ratio, double multiplier, In to) {
  const LogWeights made(d, log_ratio);
  IwaeParams p{};
  static_cast<LogWeightParams&>(p) = made.p;
  const FusedLoss loss{written(empty(d.in, {d.p.rows}, sum_type(d.in)), p.bound), made.out,
                       d.scale_gradient()};
  p.grad_params = to.mutable_data_ptr();
  p.grad_scale = d.full_only(loss.grad_scale);
  p.multiplier = multiplier;
  d.on.iwae(d, p, loss.grad_scale);
  return loss;
}

}  // namespace

Tensor log_weights(const Backend& on, In params, MaybeIn scale, In x, In log_ratio, Name likelihood,
                   MaybeIn mask) {
  const Decoder d = decoder_of_output(on, params, "params", scale, x, likelihood, mask);
  const LogWeights made(d, log_ratio);
  on.log_weights(d, made.p, 0, d.p.rows * d.p.samples);
  return made.out;
}

Two log_weights_backward(const Backend& on, In grad_in, In params, MaybeIn scale, In x,
                         Name likelihood, MaybeIn mask) {
  const Decoder d = decoder_of_output(on, params, "params", scale, x, likelihood, mask);
  const Tensor grad = d.rows(grad_in, "grad");
  Tensor grad_params = new_like(d.in), grad_scale = d.scale_gradient();
  const int64_t rows = d.p.rows * d.p.samples;
  const auto gradient = on.gradient(d, rows, false);
  gradient->add(
      {d.p, grad.const_data_ptr(), grad_params.mutable_data_ptr(), d.full_only(grad_scale)}, 0,
      rows);
  gradient->finish(nullptr, grad_scale);
  return {grad_params, grad_scale};
}

Four iwae(const Backend& on, In params, MaybeIn scale, In x, In log_ratio, Name likelihood,
          double multiplier, MaybeIn mask) {
  const Decoder d = decoder_of_output(on, params, "params", scale, x, likelihood, mask);
  const Tensor grad = new_like(d.in);
  const FusedLoss loss = fused_loss(d, log_ratio, multiplier, grad);
  return {loss.bound, loss.weights, grad, loss.grad_scale};
}

Three iwae_inplace(const Backend& on, In params, MaybeIn scale, In x, In log_ratio, Name likelihood,
                   double multiplier, MaybeIn mask) {
  const Decoder d = decoder_of_output(on, params, "params", scale, x, likelihood, mask);
  const FusedLoss loss = fused_loss(d, log_ratio, multiplier, d.in);
  copy_back(params, d.in);
  return {loss.bound, loss.weights, loss.grad_scale};
}

void rescale_inplace(const Backend& on, In grad_in, In factor_in) {
  dtype_of(grad_in, "grad");
  dtype_of(factor_in, "factor");
  const int64_t rows = grad_in.dim() > 0 ? grad_in.sizes()[0] : 1;
  const int64_t count = factor_in.numel();
  STD_TORCH_CHECK(count == 1 || count == rows, "factor must have 1 element or one per row (", rows,
                  "), got shape ", shape_of(factor_in));
  on.check_device(factor_in, "factor", grad_in);
  const Tensor factor = packed(factor_in);
  const Tensor grad = packed(grad_in);
  on.rescale(grad, factor, rows);
  copy_back(grad_in, grad);
}

}  // namespace dvae::glue
