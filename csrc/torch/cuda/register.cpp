// CUDA kernels serve on request, operator by operator: loading the library registers none.
//
// Until a kernel has been checked on the GPU that is there, the dispatcher finds nothing under CUDA
// and falls to the reference (CompositeExplicitAutograd). There dvae_fast/ops.py waits: it has the
// kernel checked, and calls _enable_cuda_kernel if it passed. Registering under a key that was
// empty overrides nothing, so torch has nothing to warn of; an operator that failed stays with the
// reference.
#include <array>
#include <iterator>
#include <mutex>
#include <string>

#include "../register.h"

namespace dvae::glue {
namespace {

constexpr const auto& kOnCuda = kKernels<cuda_backend>;

constexpr auto kNames = [] {
  std::array<const char*, std::size(kOnCuda)> names{};
  for (size_t i = 0; i < names.size(); ++i) names[i] = kOnCuda[i].name;
  return names;
}();

void enable_cuda_kernel(std::string name) {
  using torch::stable::detail::StableLibrary;
  const auto i = kind_of<size_t>(
      name, kNames, "name must be an operator with a CUDA kernel, one of", ", ", "; got ");
  // Never destroyed: a kernel serves as long as its library lives, and when the process ends torch
  // may be gone before this.
  static StableLibrary& library =
      *new StableLibrary(StableLibrary::Kind::IMPL, "dvae_fast", "CUDA", __FILE__, __LINE__);
  static std::mutex mutex;
  static bool enabled[std::size(kOnCuda)] = {};
  const std::lock_guard<std::mutex> lock(mutex);
  if (!enabled[i]) library.impl(kOnCuda[i].name, kOnCuda[i].run);
  enabled[i] = true;
}

std::string cuda_architectures() { return DVAE_CUDA_ARCHES; }

}  // namespace
}  // namespace dvae::glue

STABLE_TORCH_LIBRARY_FRAGMENT(dvae_fast, m) {
  // More than once is fine.
  m.def("_enable_cuda_kernel(str name) -> ()");
  // What the kernels were built for, separated by spaces. That it exists says that they are there.
  m.def("_cuda_architectures() -> str");
}

// Without a tensor among the arguments no device is known; this key serves then.
STABLE_TORCH_LIBRARY_IMPL(dvae_fast, CompositeExplicitAutograd, m) {
  m.impl("_enable_cuda_kernel", TORCH_BOX(&dvae::glue::enable_cuda_kernel));
  m.impl("_cuda_architectures", TORCH_BOX(&dvae::glue::cuda_architectures));
}
