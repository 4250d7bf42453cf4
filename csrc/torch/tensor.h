// What the glue needs of torch's stable ABI: checked access to tensors, and fast allocation.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "../core/params.h"

namespace dvae::glue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
}

// The dtype sums are kept in.
inline ScalarType sum_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::string shape_of(const Tensor& t) {
  std::string text = "(";
  for (int64_t i = 0; i < t.dim(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(t.sizes()[i]);
  }
  return text + ")";
}

// The public functions have told users what is wrong by now; this keeps a direct call of an
// operator from reading past a tensor's end. A size of −1 fits any.
inline void check_shape(const Tensor& t, const char* name, std::initializer_list<int64_t> shape) {
  bool fits = t.dim() == static_cast<int64_t>(shape.size());
  std::string wanted = "(";
  int64_t i = 0;
  for (const int64_t size : shape) {
    fits = fits && (size == -1 || t.sizes()[i] == size);
    wanted += (i++ > 0 ? ", " : "") + (size == -1 ? std::string("any") : std::to_string(size));
  }
  STD_TORCH_CHECK(fits, name, " must have shape ", wanted, "), got ", shape_of(t));
}

inline void check_dtype(const Tensor& t, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " must have dtype ",
                  torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(t.scalar_type()));
}

inline void check_device(const Tensor& t, const char* name, const Tensor& like) {
  STD_TORCH_CHECK(t.device() == like.device(), name, " must be on the device of the other tensors");
}

inline Tensor packed(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// An uninitialised contiguous tensor on the device of `like`. Not torch::stable::empty: that looks
// the operator up by name, microseconds each time.
inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  std::array<int64_t, 4> strides{};
  int64_t step = 1;
  for (int64_t i = static_cast<int64_t>(shape.size()) - 1; i >= 0; --i) {
    strides[static_cast<size_t>(i)] = step;
    step *= shape.begin()[i];
  }
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.begin(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor new_like(const Tensor& t) {
  const auto sizes = t.sizes();
  switch (t.dim()) {
    case 0:
      return empty(t, {}, t.scalar_type());
    case 1:
      return empty(t, {sizes[0]}, t.scalar_type());
    case 2:
      return empty(t, {sizes[0], sizes[1]}, t.scalar_type());
    case 3:
      return empty(t, {sizes[0], sizes[1], sizes[2]}, t.scalar_type());
    default:
      return torch::stable::new_empty(t, sizes);
  }
}

inline CorruptionKind corruption_kind(const std::string& kind) {
  if (kind == "identity") return CorruptionKind::kIdentity;
  if (kind == "masking") return CorruptionKind::kMasking;
  if (kind == "salt_and_pepper") return CorruptionKind::kSaltAndPepper;
  if (kind == "bit_flip") return CorruptionKind::kBitFlip;
  STD_TORCH_CHECK(kind == "gaussian",
                  "kind must be identity, masking, salt_and_pepper, bit_flip or gaussian, got ",
                  kind);
  return CorruptionKind::kGaussian;
}

inline LikelihoodKind likelihood_kind(const std::string& likelihood) {
  std::string names;
  for (int i = 0; i < kLikelihoods; ++i) {
    if (likelihood == kLikelihoodNames[i]) return static_cast<LikelihoodKind>(i);
    names += (i > 0 ? ", " : "") + std::string(kLikelihoodNames[i]);
  }
  STD_TORCH_CHECK(false, "likelihood must be one of ", names, "; got ", likelihood);
}

inline void check_seed(const Tensor& seed) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                  "seed must be an int64 tensor of one element, got shape ", shape_of(seed));
}

}  // namespace dvae::glue
