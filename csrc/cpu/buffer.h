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
  const auto whole = static_cast<size_t>(bytes > 0 ? (bytes + 63) / 64 * 64 : 64);
  void* p = std::aligned_alloc(64, whole);
  if (p == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  constexpr size_t kHuge = 2 << 20;
  if (whole >= 2 * kHuge) {
    // From the first such page on: memory aligned to it would leave holes in the heap.
    const size_t before = -reinterpret_cast<uintptr_t>(p) % kHuge;
    madvise(static_cast<char*>(p) + before, (whole - before) / kHuge * kHuge, MADV_HUGEPAGE);
  }
#endif
  return Buffer(p);
}

}  // namespace dvae::cpu
