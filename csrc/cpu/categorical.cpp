#include "categorical.h"

#include "buffer.h"

namespace dvae::cpu {

void categorical(const Mask* mask, DType dtype, const CategoricalParams& given, int64_t begin,
                 int64_t end) {
  const Kernels& table = kernels();
  const int t = static_cast<int>(dtype);
  const Buffer data = buffer(categorical_room(given.size, given.classes) * size_of(dtype));
  CategoricalParams p = given;
  p.data = data.get();
  p.seen = mask != nullptr ? mask->observed : nullptr;
  p.seen_examples = mask != nullptr ? mask->examples : 0;
  (p.grad != nullptr ? table.categorical_backward : table.categorical)[t](p, begin, end);
}

}  // namespace dvae::cpu
