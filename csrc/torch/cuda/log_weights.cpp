// log_weights, its gradient, and the fused importance-weighted loss.
#include "likelihood.h"
#include "operators.h"

namespace dvae::glue {
namespace {

// params (N, K, D), x (B, D) and the scale.
struct Decoder {
  OnDevice device;
  LikelihoodKind likelihood;
  DType dtype;
  Tensor params, x;
  ScaleOnDevice scale;
  cuda::LogWeights p{};

  Decoder(const Tensor& params_in, const std::optional<Tensor>& scale_in, const Tensor& x_in,
          const std::string& likelihood_in)
      : device(params_in),
        likelihood(likelihood_kind(likelihood_in)),
        dtype(dtype_of(params_in, "params")),
        params(checked(params_in)),
        x(packed(x_in)),
        scale(scale_in, likelihood, params_in, params.sizes()[2]) {
    p.rows = params.sizes()[0];
    p.samples = params.sizes()[1];
    p.size = params.sizes()[2];
    set_x(p, x, params, p.rows);
    if (scale.kind == ScaleKind::kFull) {
      check_shape(*scale.data, "scale", {p.rows, p.samples, p.size});
    }
    scale.fill(p, dtype, device);
    p.params = params.const_data_ptr();
    p.end = p.rows * p.samples;
    p.multiplier = 1;
  }

  // A gradient buffer for a scale per element, else nothing.
  Tensor full_scale_gradient() {
    if (scale.kind != ScaleKind::kFull) return empty(params, {0}, params.scalar_type());
    Tensor out = new_like(*scale.data);
    p.grad_scale = out.mutable_data_ptr();
    return out;
  }

  // Runs `kernel`; the gradient of a shared scale, summed over rows, takes the place of grad_scale.
  template <class F>
  void sum_scale_over(Tensor& grad_scale, const char* op, const F& kernel) {
    if (scale.kind != ScaleKind::kShared) return check_launch(kernel(), op);
    const PartialSums sums(params, p.rows * p.samples, p.size);
    p.scale_parts = sums.data();
    p.parts = sums.count;
    check_launch(kernel(), op);
    grad_scale = new_like(*scale.given);
    sums.finish(grad_scale, device);
  }

 private:
  static Tensor checked(const Tensor& params) {
    check_shape(params, "params", {-1, -1, -1});
    return packed(params);
  }
};

struct FusedLoss {
  Tensor bound, weights, grad_scale;
};

// The fused loss with its gradient left in `to`, which may be the decoder output itself.
FusedLoss fused_loss(Decoder& d, const Tensor& log_ratio_in, double multiplier, const Tensor& to) {
  cuda::LogWeights& p = d.p;
  check_rows(log_ratio_in, "log_ratio", p, d.params);
  const Tensor log_ratio = packed(log_ratio_in);
  Tensor bound = empty(d.params, {p.rows}, sum_type(d.params));
  Tensor weights = empty(d.params, {p.rows, p.samples}, sum_type(d.params));
  Tensor grad_scale = d.full_scale_gradient();
  p.log_ratio = log_ratio.const_data_ptr();
  p.log_w = weights.mutable_data_ptr();
  p.bound = bound.mutable_data_ptr();
  p.grad_params = to.mutable_data_ptr();
  p.multiplier = multiplier;
  d.sum_scale_over(grad_scale, "iwae", [&] {
    return cuda::iwae(d.likelihood, d.dtype, d.scale.kind, p, d.device.stream());
  });
  return {bound, weights, grad_scale};
}

}  // namespace

Tensor log_weights_cuda(const Tensor& params, const std::optional<Tensor>& scale, const Tensor& x,
                        const Tensor& log_ratio_in, const std::string& likelihood) {
  Decoder d(params, scale, x, likelihood);
  check_rows(log_ratio_in, "log_ratio", d.p, d.params);
  const Tensor log_ratio = packed(log_ratio_in);
  Tensor out = new_like(log_ratio);
  d.p.log_ratio = log_ratio.const_data_ptr();
  d.p.log_w = out.mutable_data_ptr();
  check_launch(cuda::log_weights(d.likelihood, d.dtype, d.scale.kind, d.p, d.device.stream()),
               "log_weights");
  return out;
}

std::tuple<Tensor, Tensor> log_weights_backward_cuda(const Tensor& grad_in, const Tensor& params,
                                                     const std::optional<Tensor>& scale,
                                                     const Tensor& x,
                                                     const std::string& likelihood) {
  Decoder d(params, scale, x, likelihood);
  check_rows(grad_in, "grad", d.p, d.params);
  const Tensor grad = packed(grad_in);
  Tensor grad_params = new_like(d.params), grad_scale = d.full_scale_gradient();
  d.p.grad = grad.const_data_ptr();
  d.p.grad_params = grad_params.mutable_data_ptr();
  d.sum_scale_over(grad_scale, "log_weights_backward", [&] {
    return cuda::log_weights_backward(d.likelihood, d.dtype, d.scale.kind, d.p, d.device.stream());
  });
  return {grad_params, grad_scale};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> iwae_cuda(const Tensor& params,
                                                     const std::optional<Tensor>& scale,
                                                     const Tensor& x, const Tensor& log_ratio,
                                                     const std::string& likelihood,
                                                     double multiplier) {
  Decoder d(params, scale, x, likelihood);
  const Tensor grad = new_like(d.params);
  FusedLoss loss = fused_loss(d, log_ratio, multiplier, grad);
  return {loss.bound, loss.weights, grad, loss.grad_scale};
}

std::tuple<Tensor, Tensor, Tensor> iwae_inplace_cuda(const Tensor& params,
                                                     const std::optional<Tensor>& scale,
                                                     const Tensor& x, const Tensor& log_ratio,
                                                     const std::string& likelihood,
                                                     double multiplier) {
  Decoder d(params, scale, x, likelihood);
  FusedLoss loss = fused_loss(d, log_ratio, multiplier, d.params);
  if (!params.is_contiguous()) {
    Tensor target = params;
    torch::stable::copy_(target, d.params);
  }
  return {loss.bound, loss.weights, loss.grad_scale};
}

void rescale_inplace_cuda(const Tensor& grad_in, const Tensor& factor_in) {
  const DType dtype = dtype_of(grad_in, "grad");
  const int64_t rows = grad_in.dim() > 0 ? grad_in.sizes()[0] : 1;
  const int64_t count = factor_in.numel();
  STD_TORCH_CHECK(count == 1 || count == rows, "factor must have 1 element or one per row (", rows,
                  "), got shape ", shape_of(factor_in));
  check_device(factor_in, "factor", grad_in);
  const OnDevice device(grad_in);
  const Tensor factor = packed(factor_in), grad = packed(grad_in);
  check_launch(cuda::rescale(dtype, grad.mutable_data_ptr(), dtype_of(factor, "factor"),
                             factor.const_data_ptr(), count, rows,
                             rows > 0 ? grad.numel() / rows : 0, device.stream()),
               "rescale_");
  if (!grad_in.is_contiguous()) {
    Tensor target = grad_in;
    torch::stable::copy_(target, grad);
  }
}

}  // namespace dvae::glue
