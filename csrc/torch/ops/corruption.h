// What every operator that corrupts makes of its arguments.
#pragma once

#include "../../core/corruptions.h"
#include "../operators.h"

namespace dvae::glue {

// Everything of CorruptParams but in and out, for `like` (copies, examples, size); keeps what the
// pointers point to.
struct Corruption {
  CorruptParams params{};
  Tensor rate, salt;

  Corruption(const Backend& on, CorruptionKind kind, In rate_in, MaybeIn salt_in, In seed, In like,
             int64_t copies, int64_t first_example, int64_t first_copy)
      : rate(packed(rate_in)), salt(salt_in ? packed(*salt_in) : rate) {
    params.kind = kind;
    params.copies = copies;
    params.examples = like.sizes()[like.dim() - 2];
    params.size = like.sizes()[like.dim() - 1];
    params.noise = on.noise(seed, first_example, first_copy, like);
    // Also where they are not read: they may be what brought tensors of another device here.
    on.check_device(rate, "rate", like);
    on.check_device(salt, "salt", like);
    if (kind == CorruptionKind::kIdentity) return;
    if (kind == CorruptionKind::kAdditiveGaussian) {
      params.std = checked(rate, "rate", sum_type(like), params.rate_step);
      return;
    }
    const void* data = checked(rate, "rate", ScalarType::Float, params.rate_step);
    params.rate = static_cast<const float*>(data);
    if (!salt_in) return;
    data = checked(salt, "salt", ScalarType::Float, params.salt_step);
    params.salt = static_cast<const float*>(data);
  }

 private:
  const void* checked(In t, const char* name, ScalarType dtype, int64_t& step) const {
    STD_TORCH_CHECK(t.numel() == 1 || t.numel() == params.size, name,
                    " must have 1 element or one per data dimension (", params.size,
                    "), got shape ", shape_of(t));
    check_dtype(t, name, dtype);
    step = t.numel() == 1 ? 0 : 1;
    return t.const_data_ptr();
  }
};

inline CorruptionKind corruption_of(Name name) {
  return kind_of<CorruptionKind>(name, kCorruptionNames, "kind must be");
}

}  // namespace dvae::glue
