// A case of a kernel: inputs, how to run it, and what float64 says; and what all of them share.
//
// The oracles are plain loops over the formulas of DESIGN's operators, written without csrc/core,
// but for the random words, which test_noise.cpp pins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/corruptions.h"
#include "core/half.h"
#include "core/likelihoods.h"
#include "core/noise.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "params.h"
#include "types.h"

namespace dvae::test {

using cpu::Kernels;

inline const Kernels& kernels_of(cpu::Isa isa) {
  switch (isa) {
    case cpu::Isa::kAvx512:
      return *cpu::kernels_avx512();
    case cpu::Isa::kAvx2:
      return *cpu::kernels_avx2();
    default:
      return *cpu::kernels_base();
  }
}

// Of the sum of a result's absolute terms.
template <class T>
constexpr double kRelative = sizeof(T) == 8 ? 1e-14 : 2e-6;

// --- inputs -----------------------------------------------------------------------------------

class Random {
 public:
  explicit Random(uint64_t seed) : generator_(seed) {}
  double uniform(double low = 0, double high = 1) {
    return low + (high - low) * (static_cast<double>(generator_() >> 11) * 0x1p-53);
  }

  // n values, rounded to T.
  template <class T>
  std::vector<T> array(int64_t n, double low, double high) {
    std::vector<T> out(static_cast<size_t>(n));
    for (T& v : out) v = make<T>(uniform(low, high));
    return out;
  }
  // Data in [0, 1], often exactly 0 or 1.
  template <class T>
  std::vector<T> data(int64_t n) {
    std::vector<T> out(static_cast<size_t>(n));
    for (T& v : out) v = make<T>(std::clamp(uniform(-0.5, 1.5), 0.0, 1.0));
    return out;
  }

 private:
  std::mt19937_64 generator_;
};

inline int64_t whole_blocks(int64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

// --- running ----------------------------------------------------------------------------------

using Body = std::function<void(int64_t begin, int64_t end)>;
// Calls the body on ranges that make up [0, range).
using Parallel = std::function<void(int64_t range, const Body&)>;

struct Output {
  std::string name;
  std::vector<unsigned char> bytes;
  std::vector<double> values;
  bool ordered;  // a sum over calls: its rounding depends on the split
};

template <class T>
Output output(const char* name, const std::vector<T>& v, bool ordered = false) {
  Output o{name, {}, {}, ordered};
  o.bytes.resize(v.size() * sizeof(T));
  if (!v.empty()) std::memcpy(o.bytes.data(), v.data(), o.bytes.size());
  for (const T& x : v) o.values.push_back(value(x));
  return o;
}

// NaN of every type, so that what a kernel leaves out shows.
template <class T>
std::vector<T> unset(int64_t n) {
  return std::vector<T>(static_cast<size_t>(n), make<T>(std::nan("")));
}

// What an output should be. Exact: bit for bit the same on every ISA.
struct Expected {
  std::vector<double> values, tolerance;
  bool exact = false;

  // `terms`: the sum of the absolute terms; T: the type it is stored in.
  template <class T>
  void add(double v, double terms) {
    values.push_back(v);
    tolerance.push_back(kRelative<T> * terms + 0.5 * TypeOf<T>::epsilon * (1 + 1e-3) * std::abs(v) +
                        TypeOf<T>::tiny);
  }
};

struct Case {
  std::string name;
  std::function<std::vector<Output>(const Kernels&, const Parallel&)> run;
  std::vector<Expected> expected;
};

}  // namespace dvae::test
