// log_weights, its gradient, and the fused importance-weighted loss.
#include "likelihood.h"
#include "operators.h"

namespace dvae::glue {
namespace {

struct FusedLoss {
  Tensor bound, weights, grad_scale;
};

// The fused loss with its gradient left in `to`, which may be the decoder output itself.
FusedLoss fused_loss(Decoder& d, const Tensor& log_ratio_in, double multiplier, const Tensor& to) {
  d.check_rows(log_ratio_in, "log_ratio");
  const Tensor log_ratio = packed(log_ratio_in);
  LogWeightParams& p = d.p;
  Tensor bound = empty(d.params, {p.rows}, sum_type(d.params));
  Tensor weights = empty(d.params, {p.rows, p.samples}, sum_type(d.params));
  Tensor grad_scale = d.full_scale_gradient();
  p.log_ratio = log_ratio.const_data_ptr();
  p.log_w = weights.mutable_data_ptr();
  p.bound = bound.mutable_data_ptr();
  p.grad_params = to.mutable_data_ptr();
  p.multiplier = multiplier;
  const cpu::Kernels& kernels = cpu::kernels();
  const auto likelihood = static_cast<int>(d.likelihood);
  const auto dtype = static_cast<int>(d.dtype);
  const ScaleKind kind = d.scale.kind;
  const int64_t threads = torch::stable::get_num_threads();
  if (threads > 1 && p.rows < 4 * threads && p.samples > 1) {
    // Too few examples to share out evenly: share out their samples, a step at a time.
    const int64_t rows = p.rows * p.samples;
    for_rows(rows, 2 * p.size, [&](int64_t begin, int64_t end) {
      kernels.iwae_sweep[likelihood][dtype](p, kind, begin, end);
    });
    kernels.iwae_normalise[dtype](p, 0, p.rows);
    d.sum_scale_over(rows, p.size, grad_scale, [&](double* sums, int64_t begin, int64_t end) {
      kernels.iwae_scale[likelihood][dtype](p, kind, sums, begin, end);
    });
  } else {
    d.sum_scale_over(p.rows, 2 * p.samples * p.size, grad_scale,
                     [&](double* sums, int64_t begin, int64_t end) {
                       kernels.iwae[likelihood][dtype](p, kind, sums, begin, end);
                     });
  }
  return {bound, weights, grad_scale};
}

}  // namespace

Tensor log_weights_cpu(const Tensor& params, const std::optional<Tensor>& scale, const Tensor& x,
                       const Tensor& log_ratio_in, const std::string& likelihood) {
  Decoder d(params, scale, x, likelihood);
  d.check_rows(log_ratio_in, "log_ratio");
  const Tensor log_ratio = packed(log_ratio_in);
  Tensor out = new_like(log_ratio);
  d.p.log_ratio = log_ratio.const_data_ptr();
  d.p.log_w = out.mutable_data_ptr();
  const auto kernel =
      cpu::kernels().log_weights[static_cast<int>(d.likelihood)][static_cast<int>(d.dtype)];
  for_rows(d.p.rows * d.p.samples, d.p.size,
           [&](int64_t begin, int64_t end) { kernel(d.p, d.scale.kind, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> log_weights_backward_cpu(const Tensor& grad_in, const Tensor& params,
                                                    const std::optional<Tensor>& scale,
                                                    const Tensor& x,
                                                    const std::string& likelihood) {
  Decoder d(params, scale, x, likelihood);
  d.check_rows(grad_in, "grad");
  const Tensor grad = packed(grad_in);
  Tensor grad_params = new_like(d.params), grad_scale = d.full_scale_gradient();
  d.p.grad = grad.const_data_ptr();
  d.p.grad_params = grad_params.mutable_data_ptr();
  const auto kernel =
      cpu::kernels()
          .log_weights_backward[static_cast<int>(d.likelihood)][static_cast<int>(d.dtype)];
  d.sum_scale_over(d.p.rows * d.p.samples, d.p.size, grad_scale,
                   [&](double* sums, int64_t begin, int64_t end) {
                     kernel(d.p, d.scale.kind, sums, begin, end);
                   });
  return {grad_params, grad_scale};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> iwae_cpu(const Tensor& params,
                                                    const std::optional<Tensor>& scale,
                                                    const Tensor& x, const Tensor& log_ratio,
                                                    const std::string& likelihood,
                                                    double multiplier) {
  Decoder d(params, scale, x, likelihood);
  const Tensor grad = new_like(d.params);
  FusedLoss loss = fused_loss(d, log_ratio, multiplier, grad);
  return {loss.bound, loss.weights, grad, loss.grad_scale};
}

std::tuple<Tensor, Tensor, Tensor> iwae_inplace_cpu(const Tensor& params,
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

void rescale_inplace_cpu(const Tensor& grad_in, const Tensor& factor_in) {
  const DType dtype = dtype_of(grad_in, "grad");
  dtype_of(factor_in, "factor");
  const int64_t rows = grad_in.dim() > 0 ? grad_in.sizes()[0] : 1;
  const int64_t count = factor_in.numel();
  STD_TORCH_CHECK(count == 1 || count == rows, "factor must have 1 element or one per row (", rows,
                  "), got shape ", shape_of(factor_in));
  const Tensor factor = packed(factor_in);
  if (count == 1 && read_element(factor, 0) == 1.0) return;
  const Tensor grad = packed(grad_in);
  void* data = grad.mutable_data_ptr();
  const auto kernel = cpu::kernels().scale_by[static_cast<int>(dtype)];
  if (count == 1) {
    const double f = read_element(factor, 0);
    for_rows(grad.numel(), 1, [&](int64_t begin, int64_t end) { kernel(data, f, begin, end); });
  } else {
    const int64_t size = rows > 0 ? grad.numel() / rows : 0;
    for_rows(rows, size, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        kernel(data, read_element(factor, n), n * size, (n + 1) * size);
      }
    });
  }
  if (!grad_in.is_contiguous()) {
    Tensor target = grad_in;
    torch::stable::copy_(target, grad);
  }
}

}  // namespace dvae::glue
