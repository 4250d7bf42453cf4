// What the glue needs of torch's stable ABI: checked access to tensors, and fast allocation.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <string>

#include "../core/params.h"

namespace dvae::glue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;
// Arguments of operators.
using In = const Tensor&;
using MaybeIn = const Maybe&;
using Name = const std::string&;

inline DType dtype_of(In t, const char* name) {
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
inline ScalarType sum_type(In t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::string shape_of(In t) {
  std::string text = "(";
  for (int64_t i = 0; i < t.dim(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(t.sizes()[i]);
  }
  return text + ")";
}

// The public functions have told users what is wrong by now; this keeps a direct call of an
// operator from reading past a tensor's end. A size of −1 fits any.
inline void check_shape(In t, const char* name, std::initializer_list<int64_t> shape) {
  const auto sizes = t.sizes();
  const auto fits = [&] {
    if (sizes.size() != shape.size()) return false;
    for (size_t i = 0; i < shape.size(); ++i) {
      if (shape.begin()[i] != -1 && shape.begin()[i] != sizes[i]) return false;
    }
    return true;
  };
  if (fits()) return;
  std::string wanted;
  for (const int64_t size : shape) {
    wanted += (wanted.empty() ? "(" : ", ") + (size == -1 ? "any" : std::to_string(size));
  }
  STD_TORCH_CHECK(false, name, " must have shape ", wanted, "), got ", shape_of(t));
}

inline void check_dtype(In t, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " must have dtype ",
                  torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(t.scalar_type()));
}

inline Tensor packed(In t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// t for a kernel to read: `data` points there for as long as the result lives. Where T is not const
// the kernel of another operator writes what this one reads.
template <class T>
Tensor read(In t, T*& data) {
  const Tensor there = packed(t);
  data = static_cast<T*>(const_cast<void*>(there.const_data_ptr()));
  return there;
}
// A new tensor for a kernel to write.
template <class T>
Tensor written(In t, T*& data) {
  data = static_cast<T*>(t.mutable_data_ptr());
  return t;
}

// After work on packed(t): what was done to it, for a caller who sees t.
inline void copy_back(In t, In worked_on) {
  if (t.is_contiguous()) return;
  Tensor target = t;
  torch::stable::copy_(target, worked_on);
}

// An uninitialised contiguous tensor on the device of `like`. Not torch::stable::empty: that looks
// the operator up by name, microseconds each time.
inline Tensor empty(In like, const int64_t* shape, int64_t dim, ScalarType dtype) {
  constexpr int64_t kMost = 16;
  if (dim > kMost) return torch::stable::new_empty(like, {shape, static_cast<size_t>(dim)}, dtype);
  int64_t strides[kMost], step = 1;
  for (int64_t i = dim - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i];
  }
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, shape, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor empty(In like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return empty(like, shape.begin(), static_cast<int64_t>(shape.size()), dtype);
}

inline Tensor new_like(In t) { return empty(t, t.sizes().data(), t.dim(), t.scalar_type()); }

// Which of `names` a name is. If none: "`must_be` a, b or c, got name".
template <class Kind, class Names>
Kind kind_of(Name name, const Names& names, const char* must_be, const char* before_last = " or ",
             const char* got = ", got ") {
  const size_t count = std::size(names);
  for (size_t i = 0; i < count; ++i) {
    if (name == names[i]) return static_cast<Kind>(i);
  }
  std::string known = names[0];
  for (size_t i = 1; i < count; ++i) {
    known += std::string(i + 1 < count ? ", " : before_last) + names[i];
  }
  STD_TORCH_CHECK(false, must_be, " ", known, got, name);
}

inline Activation activation_of(Name name) {
  return kind_of<Activation>(name, kActivationNames, "activation must be");
}
inline LikelihoodKind likelihood_of(Name name) {
  return kind_of<LikelihoodKind>(name, kLikelihoodNames, "likelihood must be one of", ", ",
                                 "; got ");
}

}  // namespace dvae::glue
