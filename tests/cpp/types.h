// The types of elements, as the tests of kernels need them.
#pragma once

#include "core/half.h"
#include "cpu/kernels.h"

namespace dvae::test {

template <class T>
struct TypeOf;

#define DVAE_TYPE(T, name, digit, smallest)                     \
  template <>                                                   \
  struct TypeOf<T> {                                            \
    static constexpr DType dtype = DType::name;                 \
    static constexpr int index = static_cast<int>(DType::name); \
    static constexpr double epsilon = digit, tiny = smallest;   \
  };
DVAE_TYPE(float, kFloat32, 0x1p-23, 0x1p-126)
DVAE_TYPE(double, kFloat64, 0x1p-52, 0x1p-1022)
DVAE_TYPE(BFloat16, kBFloat16, 0x1p-7, 0x1p-126)
DVAE_TYPE(Half, kFloat16, 0x1p-10, 0x1p-24)
#undef DVAE_TYPE

template <class T>
T make(double v) {
  T to;
  store(to, static_cast<accumulate_t<T>>(v));
  return to;
}
template <class T>
double value(T v) {
  return static_cast<double>(load(v));
}

}  // namespace dvae::test
