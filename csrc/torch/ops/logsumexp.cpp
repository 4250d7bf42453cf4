// logmeanexp, its gradient, and the streaming statistics.
#include "../../core/logsumexp.h"
#include "../operators.h"

namespace dvae::glue {
namespace {

struct Rows {
  DType dtype;
  LogMeanExpParams p{};
  Tensor log_w;

  explicit Rows(In log_w_in) : dtype(dtype_of(log_w_in, "log_w")), log_w(read(log_w_in, p.log_w)) {
    check_shape(log_w_in, "log_w", {-1, -1});
    check_dtype(log_w_in, "log_w", sum_type(log_w_in));
    p.rows = log_w.sizes()[0];
    p.samples = log_w.sizes()[1];
  }
};

}  // namespace

Tensor logmeanexp(const Backend& on, In log_w) {
  Rows of(log_w);
  const Tensor bound = written(empty(log_w, {of.p.rows}, log_w.scalar_type()), of.p.bound);
  on.logmeanexp(log_w, of.dtype, of.p);
  return bound;
}

Tensor logmeanexp_backward(const Backend& on, In grad_in, In log_w) {
  Rows of(log_w);
  on.check(grad_in, "grad", {of.p.rows}, log_w.scalar_type(), log_w);
  const Tensor grad = read(grad_in, of.p.grad);
  const Tensor out = written(new_like(log_w), of.p.grad_log_w);
  on.logmeanexp_backward(log_w, of.dtype, of.p);
  return out;
}

Tensor lse_update(const Backend& on, In state_in, In log_w) {
  const Rows of(log_w);
  on.check(state_in, "state", {of.p.rows, LogSumExp::kSize}, ScalarType::Double, log_w);
  const double* from = nullptr;
  double* to = nullptr;
  const Tensor state = read(state_in, from), out = written(new_like(state_in), to);
  on.lse_update(log_w, of.dtype, from, of.p, to);
  return out;
}

}  // namespace dvae::glue
