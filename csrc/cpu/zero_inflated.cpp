#include "zero_inflated.h"

#include "buffer.h"

namespace dvae::cpu {

void zero_inflated(const Mask* mask, DType dtype, const ZeroInflatedParams& given, ScaleKind kind,
                   double* scale_sum, int64_t begin, int64_t end) {
  const Kernels& table = kernels();
  const int t = static_cast<int>(dtype);
  const Buffer data = buffer(2 * given.size * size_of(dtype));
  ZeroInflatedParams p = given;
  p.data = data.get();
  const auto run = [&](int64_t first, int64_t last) {
    if (p.grad == nullptr) return table.zero_inflated[t](p, kind, first, last);
    table.zero_inflated_backward[t](p, kind, scale_sum, first, last);
  };
  if (mask == nullptr) {
    const std::vector<uint8_t> all(static_cast<size_t>(p.size), 1);
    p.seen = all.data();
    p.seen_examples = 1;
    return run(begin, end);
  }
  p.seen = mask->observed;
  p.seen_examples = mask->examples;
  run(begin, end);
}

}  // namespace dvae::cpu
