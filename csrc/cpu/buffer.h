// Memory of a kernel's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace dvae::cpu {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;

// Aligned for vectors, uninitialised.
inline Buffer buffer(int64_t bytes) {
  const auto whole = static_cast<size_t>(bytes > 0 ? (bytes + 63) / 64 * 64 : 64);
  void* p = std::aligned_alloc(64, whole);
  if (p == nullptr) throw std::bad_alloc();
  return Buffer(p);
}

}  // namespace dvae::cpu
