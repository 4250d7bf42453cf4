// logmeanexp, its gradient, and the streaming statistics.
#include "../../core/logsumexp.h"

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

}  // namespace

Tensor logmeanexp_cpu(const Tensor& log_w_in) {
  const DType dtype = log_weight_dtype(log_w_in);
  const Tensor log_w = packed(log_w_in);
  LogMeanExpParams p{};
  p.rows = log_w.sizes()[0];
  p.samples = log_w.sizes()[1];
  Tensor bound = empty(log_w, {p.rows}, log_w.scalar_type());
  p.log_w = log_w.const_data_ptr();
  p.bound = bound.mutable_data_ptr();
  const auto kernel = cpu::kernels().logmeanexp[static_cast<int>(dtype)];
  for_rows(p.rows, p.samples, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return bound;
}

Tensor logmeanexp_backward_cpu(const Tensor& grad_in, const Tensor& log_w_in) {
  const DType dtype = log_weight_dtype(log_w_in);
  check_shape(grad_in, "grad", {log_w_in.sizes()[0]});
  check_dtype(grad_in, "grad", log_w_in.scalar_type());
  const Tensor grad = packed(grad_in), log_w = packed(log_w_in);
  LogMeanExpParams p{};
  p.rows = log_w.sizes()[0];
  p.samples = log_w.sizes()[1];
  Tensor out = new_like(log_w);
  p.log_w = log_w.const_data_ptr();
  p.grad = grad.const_data_ptr();
  p.grad_log_w = out.mutable_data_ptr();
  const auto kernel = cpu::kernels().logmeanexp_backward[static_cast<int>(dtype)];
  for_rows(p.rows, p.samples, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
  return out;
}

Tensor lse_update_cpu(const Tensor& state_in, const Tensor& log_w_in) {
  const DType dtype = log_weight_dtype(log_w_in);
  check_state(state_in, "state", log_w_in.sizes()[0]);
  const Tensor state = packed(state_in), log_w = packed(log_w_in);
  const int64_t rows = log_w.sizes()[0], samples = log_w.sizes()[1];
  Tensor out = new_like(state);
  const double* from = static_cast<const double*>(state.const_data_ptr());
  double* to = static_cast<double*>(out.mutable_data_ptr());
  const void* weights = log_w.const_data_ptr();
  const auto kernel = cpu::kernels().lse_update[static_cast<int>(dtype)];
  // Exponentials in double: about ten times a float's cost.
  for_rows(rows, 10 * samples,
           [&](int64_t begin, int64_t end) { kernel(from, weights, samples, to, begin, end); });
  return out;
}

Tensor lse_merge_cpu(const Tensor& a_in, const Tensor& b_in) {
  check_state(a_in, "a", -1);
  check_state(b_in, "b", a_in.sizes()[0]);
  const Tensor a = packed(a_in), b = packed(b_in);
  Tensor out = new_like(a);
  const double* left = static_cast<const double*>(a.const_data_ptr());
  const double* right = static_cast<const double*>(b.const_data_ptr());
  double* to = static_cast<double*>(out.mutable_data_ptr());
  const auto read = [](const double* v) {
    LogSumExp s;
    s.max = v[0], s.s1 = v[1], s.s2 = v[2], s.sum = v[3], s.count = v[4];
    return s;
  };
  for_rows(a.sizes()[0], 100, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kStateSize; i < end * kStateSize; i += kStateSize) {
      LogSumExp s = read(left + i);
      s.merge(read(right + i));
      to[i] = s.max, to[i + 1] = s.s1, to[i + 2] = s.s2, to[i + 3] = s.sum, to[i + 4] = s.count;
    }
  });
  return out;
}

}  // namespace dvae::glue
