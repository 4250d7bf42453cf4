// What the tests of the emulated CUDA kernels share: buffers that end where their allocation ends,
// runs in several orders of threads and blocks, and comparison with the CPU's kernels.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../params.h"
#include "../types.h"
#include "core/half.h"
#include "core/noise.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace dvae::test {

// --- types ------------------------------------------------------------------------------------

using Types = testing::Types<float, double, BFloat16, Half>;

// A suite of tests for every type.
#define DVAE_TYPED_SUITE(name)          \
  template <class T>                    \
  class name : public testing::Test {}; \
  TYPED_TEST_SUITE(name, Types)

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// --- buffers ----------------------------------------------------------------------------------

// n elements, the first `offset` elements past a 16-byte boundary.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n, int64_t offset = 0)
      : size_(n), data_(nullptr), memory_(new unsigned char[bytes_of(n + offset)]) {
    data_ = reinterpret_cast<T*>(memory_.get()) + offset;
    unset();
  }
  Buffer(const Buffer& other) = delete;
  Buffer& operator=(const Buffer& other) = delete;
  Buffer(Buffer&&) = default;

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  double at(int64_t i) const { return value(data_[i]); }

  // NaN, so that what a kernel leaves out shows.
  void unset() {
    for (int64_t i = 0; i < size_; ++i) data_[i] = make<T>(kNaN);
  }
  void copy(const Buffer& from) {
    for (int64_t i = 0; i < size_; ++i) data_[i] = from[i];
  }
  std::string bytes() const { return {reinterpret_cast<const char*>(data_), bytes_of(size_)}; }

 private:
  static size_t bytes_of(int64_t n) { return static_cast<size_t>(n) * sizeof(T); }
  int64_t size_;
  T* data_;
  std::unique_ptr<unsigned char[]> memory_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : generator_(seed) {}
  double uniform(double low, double high) {
    return low + (high - low) * (static_cast<double>(generator_() >> 11) * 0x1p-53);
  }
  template <class T>
  Buffer<T> buffer(int64_t n, double low, double high, int64_t offset = 0) {
    Buffer<T> out(n, offset);
    for (int64_t i = 0; i < n; ++i) out[i] = make<T>(uniform(low, high));
    return out;
  }
  // Data in [0, 1], often exactly 0 or 1.
  template <class T>
  Buffer<T> data(int64_t n, int64_t offset = 0) {
    Buffer<T> out(n, offset);
    for (int64_t i = 0; i < n; ++i) {
      out[i] = make<T>(std::min(1.0, std::max(0.0, uniform(-0.5, 1.5))));
    }
    return out;
  }

 private:
  std::mt19937_64 generator_;
};

// The body for every size of latents and number of samples, few samples where they are large.
template <class F>
void for_latents(std::initializer_list<int64_t> sizes, std::initializer_list<int64_t> counts,
                 const F& body) {
  Random random(3);
  for (const int64_t size : sizes) {
    for (const int64_t samples : counts) {
      if (size > 65 && samples > 5) continue;
      body(size, samples, random);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// --- running ----------------------------------------------------------------------------------

// Restores the emulated device at the end of its scope.
class Device {
 public:
  Device() : saved_(emulator::settings) {}
  ~Device() { emulator::settings = saved_; }
  emulator::Settings* operator->() { return &emulator::settings; }

 private:
  emulator::Settings saved_;
};

// Runs `launch` (which returns a cudaError_t) with threads and blocks in several orders, and with
// grids of no more than max_grid blocks: the outputs, unset before each run, must have the same
// bits.
template <class Launch, class... T>
void run_with_grids(int max_grid, const std::string& name, const Launch& launch,
                    Buffer<T>&... outputs) {
  SCOPED_TRACE(name);
  std::string first;
  for (int i = 0; i < 5; ++i) {
    Device device;
    device->order = i == 4       ? emulator::Order::kShuffled
                    : i % 2 == 1 ? emulator::Order::kBackward
                                 : emulator::Order::kForward;
    device->seed = 42;
    if (i >= 2) device->max_grid = max_grid;
    (outputs.unset(), ...);
    ASSERT_EQ(launch(), cudaSuccess);
    std::string bytes;
    ((bytes += outputs.bytes()), ...);
    if (i == 0) first = bytes;
    ASSERT_TRUE(first == bytes) << "run " << i << " gives other bits";
  }
}
template <class Launch, class... T>
void run_in_all_orders(const std::string& name, const Launch& launch, Buffer<T>&... outputs) {
  run_with_grids(2, name, launch, outputs...);
}
// For kernels whose grid is a matter of their sums' parts.
template <class Launch, class... T>
void run_with_fixed_grid(const std::string& name, const Launch& launch, Buffer<T>&... outputs) {
  run_with_grids(emulator::settings.max_grid, name, launch, outputs...);
}

// --- comparison -------------------------------------------------------------------------------

// The same to rounding: within 4e-6 (float64: 1e-13) of `terms`, the largest sum of absolute terms
// behind an element, plus a unit in the last place of T. NaN and ±inf must be the same.
template <class T>
void expect_close(const char* what, const Buffer<T>& got, const Buffer<T>& wanted, double terms) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  const double relative = sizeof(T) == 8 ? 1e-13 : 4e-6;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double a = got.at(i), b = wanted.at(i);
    if (std::isnan(b) || std::isinf(b)) {
      ASSERT_TRUE(std::isnan(b) ? std::isnan(a) : a == b)
          << what << '[' << i << "] = " << a << ", wanted " << b;
      continue;
    }
    const double tolerance =
        relative * terms + 1.01 * TypeOf<T>::epsilon * std::abs(b) + TypeOf<T>::tiny;
    ASSERT_LE(std::abs(a - b), tolerance)
        << what << '[' << i << "] = " << a << ", wanted " << b << " within " << tolerance;
  }
}

template <class T>
void expect_same_bits(const char* what, const Buffer<T>& got, const Buffer<T>& wanted) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  for (int64_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &wanted[i], sizeof(T)), 0)
        << what << '[' << i << "] = " << got.at(i) << ", wanted " << wanted.at(i);
  }
}

inline const cpu::Kernels& cpu_kernels() { return *cpu::kernels_base(); }

inline int64_t whole_blocks(int64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

// Sizes of less than a noise block, one, one and a bit, many; 784 is a multiple of 16 bytes.
constexpr int64_t kSizes[] = {1, 63, 64, 65, 784, 785};

}  // namespace dvae::test
