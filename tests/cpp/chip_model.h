// A special-function unit for core/device_math.h whose every result is as wrong as NVIDIA's may be,
// by the CUDA C++ Programming Guide (mathematical functions, intrinsics) and the PTX ISA.
#pragma once

#include <cmath>
#include <limits>

#include "core/math.h"

namespace dvae::test {

struct ChipModel {
  // By how much of the largest error each function errs, −1 to 1.
  static inline double exp2_error = 0, reciprocal_error = 0, log2_error = 0, sqrt_error = 0,
                       sine_error = 0, cosine_error = 0;
  static constexpr double kUlp = 0x1p-23;  // of a float, at most, over the float

  static float flushed(double y) {
    return std::abs(y) < 0x1p-126 ? std::copysign(0.0f, static_cast<float>(y))
                                  : static_cast<float>(y);
  }
  // ex2.approx.ftz: 2 ulp.
  static float exp2(float x) {
    return flushed(std::exp2(static_cast<double>(x)) * (1 + exp2_error * 2 * kUlp));
  }
  // rcp.approx.ftz: 1 ulp.
  static float reciprocal(float x) { return flushed(1.0 / x * (1 + reciprocal_error * kUlp)); }
  // lg2.approx: 2⁻²² in [½, 2], 2 ulp outside.
  static float log2(float x) {
    const double y = std::log2(static_cast<double>(x));
    const double error = x >= 0.5f && x <= 2.0f ? 0x1p-22 : 2 * kUlp * std::abs(y);
    return static_cast<float>(y + log2_error * error);
  }
  // sqrt.approx: 2⁻²³ of the result.
  static float sqrt(float x) {
    return static_cast<float>(std::sqrt(static_cast<double>(x)) * (1 + sqrt_error * 0x1p-23));
  }
  // __sinf and __cosf, in [−π, π].
  static float sine(float x) {
    return static_cast<float>(std::sin(static_cast<double>(x)) + sine_error * std::exp2(-21.41));
  }
  static float cosine(float x) {
    return static_cast<float>(std::cos(static_cast<double>(x)) + cosine_error * std::exp2(-21.19));
  }

  // Exact ones.
  static float capped_magnitude(float x, float most) {
    return std::isnan(x) ? x : std::fmin(std::fabs(x), most);
  }
  static float is_positive(float x) { return x > 0 ? 1.0f : 0.0f; }
  static float add_product(float sum, float u, float v) {
    return u == 0 ? sum : std::fma(u, v, sum);
  }

  // Sets all errors: each way of `bits`, a number below kWays, sends every function one way.
  static constexpr int kWays = 64;
  static void set_errors(int bits, double size = 1) {
    double* const all[] = {&exp2_error, &reciprocal_error, &log2_error,
                           &sqrt_error, &sine_error,       &cosine_error};
    for (int i = 0; i < 6; ++i) *all[i] = (bits >> i & 1) != 0 ? size : -size;
  }
};

}  // namespace dvae::test
