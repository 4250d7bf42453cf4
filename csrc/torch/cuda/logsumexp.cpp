// logmeanexp, its gradient, and the streaming statistics.
#include "common.h"
#include "operators.h"

namespace dvae::glue {
namespace {

constexpr int64_t kStateSize = 5;

DType log_weight_dtype(const Tensor& log_w) {
  check_shape(log_w, "log_w", {-1, -1});
  check_dtype(log_w, "log_w", sum_type(log_w));
  return dtype_of(log_w, "log_w");
}

void check_state(const Tensor& state, const char* name, int64_t rows) {
  check_shape(state, name, {rows, kStateSize});
  check_dtype(state, name, ScalarType::Double);
}

const double* doubles(const Tensor& t) { return static_cast<const double*>(t.const_data_ptr()); }

}  // namespace

Tensor logmeanexp_cuda(const Tensor& log_w_in) {
  const DType dtype = log_weight_dtype(log_w_in);
  const OnDevice device(log_w_in);
  const Tensor log_w = packed(log_w_in);
  LogMeanExpParams p{};
  p.rows = log_w.sizes()[0];
  p.samples = log_w.sizes()[1];
  Tensor bound = empty(log_w, {p.rows}, log_w.scalar_type());
  p.log_w = log_w.const_data_ptr();
  p.bound = bound.mutable_data_ptr();
  check_launch(cuda::logmeanexp(dtype, p, device.stream()), "logmeanexp");
  return bound;
}

Tensor logmeanexp_backward_cuda(const Tensor& grad_in, const Tensor& log_w_in) {
  const DType dtype = log_weight_dtype(log_w_in);
  check_shape(grad_in, "grad", {log_w_in.sizes()[0]});
  check_dtype(grad_in, "grad", log_w_in.scalar_type());
  check_device(grad_in, "grad", log_w_in);
  const OnDevice device(log_w_in);
  const Tensor grad = packed(grad_in), log_w = packed(log_w_in);
  LogMeanExpParams p{};
  p.rows = log_w.sizes()[0];
  p.samples = log_w.sizes()[1];
  Tensor out = new_like(log_w);
  p.log_w = log_w.const_data_ptr();
  p.grad = grad.const_data_ptr();
  p.grad_log_w = out.mutable_data_ptr();
  check_launch(cuda::logmeanexp_backward(dtype, p, device.stream()), "logmeanexp_backward");
  return out;
}

Tensor lse_update_cuda(const Tensor& state_in, const Tensor& log_w_in) {
  const DType dtype = log_weight_dtype(log_w_in);
  check_state(state_in, "state", log_w_in.sizes()[0]);
  check_device(state_in, "state", log_w_in);
  const OnDevice device(log_w_in);
  const Tensor state = packed(state_in), log_w = packed(log_w_in);
  Tensor out = new_like(state);
  check_launch(cuda::lse_update(dtype, doubles(state), log_w.const_data_ptr(), log_w.sizes()[0],
                                log_w.sizes()[1], static_cast<double*>(out.mutable_data_ptr()),
                                device.stream()),
               "lse_update");
  return out;
}

Tensor lse_merge_cuda(const Tensor& a_in, const Tensor& b_in) {
  check_state(a_in, "a", -1);
  check_state(b_in, "b", a_in.sizes()[0]);
  check_device(b_in, "b", a_in);
  const OnDevice device(a_in);
  const Tensor a = packed(a_in), b = packed(b_in);
  Tensor out = new_like(a);
  check_launch(cuda::lse_merge(doubles(a), doubles(b), a.sizes()[0],
                               static_cast<double*>(out.mutable_data_ptr()), device.stream()),
               "lse_merge");
  return out;
}

}  // namespace dvae::glue
