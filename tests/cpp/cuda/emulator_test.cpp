// The emulator finds the mistakes it is there for.
#include "../../../csrc/cuda/launch.cuh"
#include "support.h"

namespace dvae::test {
namespace {

using cuda::grid_of;
using cuda::launch;
using cuda::shared_at;

void rotate(const int* in, int* out, bool synchronise) {
  int* shared = shared_at<int>();
  const unsigned t = threadIdx.x;
  shared[t] = in[t];
  if (synchronise) __syncthreads();
  out[t] = shared[(t + 1) % blockDim.x];
}

// The results in two orders.
std::pair<std::vector<int>, std::vector<int>> rotate_in_two_orders(bool synchronise) {
  std::vector<int> in(64), out[2];
  for (int i = 0; i < 64; ++i) in[static_cast<size_t>(i)] = i;
  for (int i = 0; i < 2; ++i) {
    Device device;
    device->order = i == 0 ? emulator::Order::kForward : emulator::Order::kBackward;
    out[i].resize(64);
    EXPECT_EQ(launch(&rotate, grid_of(1), 64, 64 * sizeof(int), nullptr, in.data(), out[i].data(),
                     synchronise),
              cudaSuccess);
  }
  return {out[0], out[1]};
}

TEST(Emulator, RunsThreadsBetweenBarriers) {
  const auto [forward, backward] = rotate_in_two_orders(true);
  EXPECT_EQ(forward, backward);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(forward[static_cast<size_t>(i)], (i + 1) % 64);
}

TEST(Emulator, ShowsAMissingBarrier) {
  const auto [forward, backward] = rotate_in_two_orders(false);
  EXPECT_NE(forward, backward);
}

void sum(float* out) {
  float v = static_cast<float>(threadIdx.x);
  for (int w = 16; w > 0; w /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, w);
  out[threadIdx.x] = v;
}

TEST(Emulator, Shuffles) {
  std::vector<float> out(64);
  ASSERT_EQ(launch(&sum, grid_of(1), 64, 0, nullptr, out.data()), cudaSuccess);
  for (size_t i = 0; i < 64; ++i) EXPECT_EQ(out[i], i < 32 ? 496.0f : 1520.0f);
}

void leave_early(bool at_shuffle) {
  if (threadIdx.x == 40) return;
  if (at_shuffle) {
    (void)__shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);
  } else {
    __syncthreads();
  }
}
void two_barriers() {
  if (threadIdx.x == 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
void shuffle_and_barrier() {
  if (threadIdx.x == 40) {
    __syncthreads();
  } else {
    (void)__shfl_xor_sync(0xFFFFFFFFu, 1.0f, 1);
  }
}
void half_a_warp() { (void)__shfl_xor_sync(0x0000FFFFu, 1.0f, 1); }

TEST(Emulator, RefusesThreadsThatPart) {
  EXPECT_THROW(launch(&leave_early, grid_of(1), 64, 0, nullptr, false), emulator::Error);
  EXPECT_THROW(launch(&leave_early, grid_of(1), 64, 0, nullptr, true), emulator::Error);
  EXPECT_THROW(launch(&two_barriers, grid_of(1), 64, 0, nullptr), emulator::Error);
  EXPECT_THROW(launch(&shuffle_and_barrier, grid_of(1), 64, 0, nullptr), emulator::Error);
  EXPECT_THROW(launch(&half_a_warp, grid_of(1), 64, 0, nullptr), emulator::Error);
}

void read_shared(unsigned char* out) { *out = *shared_at<unsigned char>(); }

TEST(Emulator, SharedMemoryBeginsPoisoned) {
  unsigned char out = 0;
  ASSERT_EQ(launch(&read_shared, grid_of(1), 1, 1, nullptr, &out), cudaSuccess);
  EXPECT_EQ(out, 0xFF);
}

void nothing() {}

TEST(Emulator, RefusesWhatADeviceWould) {
  EXPECT_EQ(launch(&nothing, grid_of(0), 1, 0, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(&nothing, grid_of(1, 65536), 1, 0, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(&nothing, grid_of(1), 1025, 0, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(&nothing, grid_of(1), 1, 228 << 10, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(&nothing, grid_of(1), 1, 227 << 10, nullptr), cudaSuccess);
  cudaLaunchConfig_t config = {};
  config.gridDim = config.blockDim = dim3(1);
  config.dynamicSmemBytes = 49 << 10;  // without leave to use more than 48 KiB
  EXPECT_EQ(cudaLaunchKernelEx(&config, &read_shared, nullptr), cudaErrorInvalidConfiguration);
}

// A kernel's first use, which loads it, may be in a capture: that is forbidden in any other mode.
TEST(Launch, IsInRelaxedCaptureModeAndLeavesTheModeAsItWas) {
  const auto tell = +[](cudaStreamCaptureMode* mode) { *mode = emulator::capture_mode; };
  for (const auto before : {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal}) {
    emulator::capture_mode = before;
    cudaStreamCaptureMode during = before;
    EXPECT_EQ(launch(tell, grid_of(1), 1, 0, nullptr, &during), cudaSuccess);
    EXPECT_EQ(during, cudaStreamCaptureModeRelaxed);
    EXPECT_EQ(emulator::capture_mode, before);
    EXPECT_NE(launch(tell, grid_of(0), 1, 0, nullptr, &during), cudaSuccess);
    EXPECT_NE(launch(tell, grid_of(1), 1, 1 << 30, nullptr, &during), cudaSuccess);
    EXPECT_EQ(emulator::capture_mode, before);
  }
  emulator::capture_mode = cudaStreamCaptureModeGlobal;
}

}  // namespace
}  // namespace dvae::test
