// Shared by the CUDA operators: device, stream, launch errors, and the seed.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "../../cuda/kernels.h"
#include "../tensor.h"

namespace dvae::glue {

// Makes the device of a tensor the current one, in its scope; work goes to its current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : guard_(cuda_index(t)) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  // A tensor of the CPU comes here beside one of a GPU, which is what chose this kernel; its index
  // is −1, for the guard and the stream an index like any other.
  static int32_t cuda_index(const Tensor& t) {
    STD_TORCH_CHECK(t.is_cuda(), "all tensors must be on one GPU, got ",
                    t.is_cpu() ? "one on the CPU" : "one on a device that is not CUDA's",
                    ", of shape ", shape_of(t));
    return t.get_device_index();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline void check_launch(cudaError_t error, const char* op) {
  // Taken out of the runtime, where torch would find it at its next look and blame another.
  if (error != cudaSuccess) (void)cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "dvae_fast::", op, ": ", cudaGetErrorString(error));
}

// Where the seed lies; the kernels read it there.
inline const int64_t* seed_data(const Tensor& seed, const Tensor& like) {
  check_seed(seed);
  check_device(seed, "seed", like);
  return static_cast<const int64_t*>(seed.const_data_ptr());
}

inline void check_first(int64_t first_example, int64_t first_sample) {
  STD_TORCH_CHECK(first_example >= 0 && first_example <= UINT32_MAX && first_sample >= 0 &&
                      first_sample <= UINT32_MAX,
                  "first_example and first_sample must lie in [0, 2**32), got ", first_example,
                  " and ", first_sample);
}

}  // namespace dvae::glue
