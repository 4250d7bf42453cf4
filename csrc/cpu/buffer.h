// Memory of a kernel's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dvae::cpu {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;

// Aligned for vectors, uninitialised; where it is large, of huge pages if the system has them, for
// which it asks the system 512 times less, and a processor's table of pages reaches further.
inline Buffer buffer(int64_t bytes) {
  constexpr int64_t kHuge = 2 << 20;
  const int64_t unit = bytes >= 2 * kHuge ? kHuge : 64;
  const auto whole = static_cast<size_t>(bytes > 0 ? (bytes + unit - 1) / unit * unit : unit);
  void* p = std::aligned_alloc(static_cast<size_t>(unit), whole);
  if (p == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (unit == kHuge) madvise(p, whole, MADV_HUGEPAGE);
#endif
  return Buffer(p);
}

}  // namespace dvae::cpu
