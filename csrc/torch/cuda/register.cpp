// CUDA kernels serve on request, operator by operator: loading the library registers none.
//
// Until a kernel has been checked on the GPU that is there, the dispatcher finds nothing under CUDA
// and falls to the reference (CompositeExplicitAutograd). There dvae_fast/ops.py waits: it has the
// kernel checked, and calls _enable_cuda_kernels if it passed. Registering under a key that was
// empty overrides nothing, so torch has nothing to warn of; an operator that failed stays with the
// reference.
#include <algorithm>
#include <array>
#include <iterator>
#include <mutex>
#include <string>
#include <vector>

#include "../register.h"

namespace dvae::glue {
namespace {

constexpr const auto& kOnCuda = kKernels<cuda_backend>;

constexpr auto kNames = [] {
  std::array<const char*, std::size(kOnCuda)> names{};
  for (size_t i = 0; i < names.size(); ++i) names[i] = kOnCuda[i].name;
  return names;
}();

// Every name is looked up before the first is registered.
std::vector<size_t> indices_of(Name names) {
  std::vector<size_t> found;
  for (size_t begin = 0; begin <= names.size() && !names.empty();) {
    const size_t end = std::min(names.find(',', begin), names.size());
    found.push_back(
        kind_of<size_t>(names.substr(begin, end - begin), kNames,
                        "names must be operators with CUDA kernels, separated by commas,"
                        " of",
                        ", ", "; got "));
    begin = end + 1;
  }
  return found;
}

void enable_cuda_kernels(std::string names) {
  using torch::stable::detail::StableLibrary;
  const std::vector<size_t> wanted = indices_of(names);
  // Never destroyed: a kernel serves as long as its library lives, and when the process ends torch
  // may be gone before this.
  static StableLibrary& library =
      *new StableLibrary(StableLibrary::Kind::IMPL, "dvae_fast", "CUDA", __FILE__, __LINE__);
  static std::mutex mutex;
  static bool enabled[std::size(kOnCuda)] = {};
  const std::lock_guard<std::mutex> lock(mutex);
  for (const size_t i : wanted) {
    if (enabled[i]) continue;
    library.impl(kOnCuda[i].name, kOnCuda[i].run);
    enabled[i] = true;
  }
}

std::string cuda_architectures() { return DVAE_CUDA_ARCHES; }

}  // namespace
}  // namespace dvae::glue

STABLE_TORCH_LIBRARY_FRAGMENT(dvae_fast, m) {
  // Operator names as above, separated by commas; more than once is fine.
  m.def("_enable_cuda_kernels(str names) -> ()");
  // What the kernels were built for, separated by spaces. That it exists says that they are there.
  m.def("_cuda_architectures() -> str");
}

// Without a tensor among the arguments no device is known; this key serves then.
STABLE_TORCH_LIBRARY_IMPL(dvae_fast, CompositeExplicitAutograd, m) {
  m.impl("_enable_cuda_kernels", TORCH_BOX(&dvae::glue::enable_cuda_kernels));
  m.impl("_cuda_architectures", TORCH_BOX(&dvae::glue::cuda_architectures));
}
