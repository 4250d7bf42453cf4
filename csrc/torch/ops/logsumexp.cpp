// logmeanexp, its gradient, and the streaming statistics.
#include "../../core/logsumexp.h"
#include "../operators.h"

namespace dvae::glue {
namespace {

DType log_weight_dtype(In log_w) {
  check_shape(log_w, "log_w", {-1, -1});
  check_dtype(log_w, "log_w", sum_type(log_w));
  return dtype_of(log_w, "log_w");
}

LogMeanExpParams rows_of(In log_w) {
  LogMeanExpParams p{};
  p.log_w = log_w.const_data_ptr();
  p.rows = log_w.sizes()[0];
  p.samples = log_w.sizes()[1];
  return p;
}

const double* doubles(In t) { return static_cast<const double*>(t.const_data_ptr()); }
double* doubles_of(Tensor& t) { return static_cast<double*>(t.mutable_data_ptr()); }

}  // namespace

Tensor logmeanexp(const Backend& on, In log_w_in) {
  const DType dtype = log_weight_dtype(log_w_in);
  const Tensor log_w = packed(log_w_in);
  LogMeanExpParams p = rows_of(log_w);
  Tensor bound = empty(log_w, {p.rows}, log_w.scalar_type());
  p.bound = bound.mutable_data_ptr();
  on.logmeanexp(log_w, dtype, p);
  return bound;
}

Tensor logmeanexp_backward(const Backend& on, In grad_in, In log_w_in) {
  const DType dtype = log_weight_dtype(log_w_in);
  on.check(grad_in, "grad", {log_w_in.sizes()[0]}, log_w_in.scalar_type(), log_w_in);
  const Tensor grad = packed(grad_in), log_w = packed(log_w_in);
  LogMeanExpParams p = rows_of(log_w);
  Tensor out = new_like(log_w);
  p.grad = grad.const_data_ptr();
  p.grad_log_w = out.mutable_data_ptr();
  on.logmeanexp_backward(log_w, dtype, p);
  return out;
}

Tensor lse_update(const Backend& on, In state_in, In log_w_in) {
  const DType dtype = log_weight_dtype(log_w_in);
  on.check(state_in, "state", {log_w_in.sizes()[0], LogSumExp::kSize}, ScalarType::Double,
           log_w_in);
  const Tensor state = packed(state_in), log_w = packed(log_w_in);
  Tensor out = new_like(state);
  on.lse_update(log_w, dtype, doubles(state), log_w.const_data_ptr(), log_w.sizes()[0],
                log_w.sizes()[1], doubles_of(out));
  return out;
}

Tensor lse_merge(const Backend& on, In a_in, In b_in) {
  check_shape(a_in, "a", {-1, LogSumExp::kSize});
  check_dtype(a_in, "a", ScalarType::Double);
  on.check(b_in, "b", {a_in.sizes()[0], LogSumExp::kSize}, ScalarType::Double, a_in);
  const Tensor a = packed(a_in), b = packed(b_in);
  Tensor out = new_like(a);
  on.lse_merge(a, doubles(a), doubles(b), a.sizes()[0], doubles_of(out));
  return out;
}

}  // namespace dvae::glue
