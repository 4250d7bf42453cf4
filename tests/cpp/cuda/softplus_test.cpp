// softplus and its gradient.
#include "support.h"

namespace dvae::test {
namespace {

DVAE_TYPED_SUITE(Softplus);

TYPED_TEST(Softplus, ForwardAndBackward) {
  using T = TypeParam;
  constexpr int t = static_cast<int>(TypeOf<T>::dtype);
  Random random(3);
  for (const int64_t n : {1, 63, 64, 784, 785}) {
    for (const int64_t offset : {0, 1}) {
      auto x = random.buffer<T>(n, -20, 20, offset);
      if (n > 3) x[0] = make<T>(kNaN), x[1] = make<T>(kInf), x[2] = make<T>(-kInf);
      const auto grad = random.buffer<T>(n, -1, 1, offset);
      Buffer<T> out(n, offset), wanted(n), d(n, offset), wanted_d(n);
      run_in_all_orders(
          "n=" + std::to_string(n),
          [&] {
            const cudaError_t error =
                cuda::softplus(TypeOf<T>::dtype, x.data(), out.data(), n, nullptr);
            if (error != cudaSuccess) return error;
            return cuda::softplus_backward(TypeOf<T>::dtype, grad.data(), out.data(), d.data(), n,
                                           nullptr);
          },
          out, d);
      cpu_kernels().softplus[t](x.data(), wanted.data(), 0, n);
      cpu_kernels().softplus_backward[t](grad.data(), wanted.data(), wanted_d.data(), 0, n);
      expect_close("out", out, wanted, 0.1);
      expect_close("grad", d, wanted_d, 0.1);
    }
  }
}

TEST(SoftplusCases, Empty) {
  const int64_t before = emulator::counts.launches;
  EXPECT_EQ(cuda::softplus(DType::kFloat32, nullptr, nullptr, 0, nullptr), cudaSuccess);
  EXPECT_EQ(cuda::softplus_backward(DType::kFloat32, nullptr, nullptr, nullptr, 0, nullptr),
            cudaSuccess);
  EXPECT_EQ(emulator::counts.launches, before);
}

}  // namespace
}  // namespace dvae::test
