// rescale, finish_sums, log_scale_sum, and the parts they take.
#include "support.h"

namespace dvae::test {
namespace {

DVAE_TYPED_SUITE(Sums);

// Factors of every dtype, one element and one a row.
template <class T, class F>
void check_rescale(int64_t size, int64_t offset, bool per_row, double special, Random& random) {
  constexpr int64_t rows = 5;
  const auto grad = random.buffer<T>(rows * size, -4, 4, offset);
  auto factor = random.buffer<F>(per_row ? rows : 1, -2, 2, 1);
  factor[factor.size() - 1] = make<F>(special);
  Buffer<T> got(grad.size(), offset), wanted(grad.size());
  run_in_all_orders(
      "size " + std::to_string(size),
      [&] {
        got.copy(grad);
        return cuda::rescale(TypeOf<T>::dtype, got.data(), TypeOf<F>::dtype, factor.data(),
                             factor.size(), rows, size, nullptr);
      },
      got);
  wanted.copy(grad);
  const auto kernel = cpu_kernels().scale_by[static_cast<int>(TypeOf<T>::dtype)];
  for (int64_t n = 0; n < rows; ++n) {
    kernel(wanted.data(), factor.at(per_row ? n : 0), n * size, (n + 1) * size);
  }
  expect_same_bits("grad", got, wanted);
}

TYPED_TEST(Sums, Rescale) {
  using T = TypeParam;
  Random random(3);
  for (const int64_t size : kSizes) {
    for (const bool per_row : {false, true}) {
      for (const int64_t offset : {0, 1}) {
        for (const double special : {1.0, -0.375, 0.0}) {
          check_rescale<T, float>(size, offset, per_row, special, random);
          check_rescale<T, double>(size, offset, per_row, special, random);
          check_rescale<T, BFloat16>(size, offset, per_row, special, random);
          check_rescale<T, Half>(size, offset, per_row, special, random);
        }
      }
    }
  }
}

// A signalling bit pattern would not survive a multiplication: by 1 there is none.
TEST(SumsCases, RescaleByOneTouchesNothing) {
  std::vector<uint32_t> bits(300, 0x7F800001u);
  const float one = 1;
  ASSERT_EQ(cuda::rescale(DType::kFloat32, bits.data(), DType::kFloat32, &one, 1, 1, 300, nullptr),
            cudaSuccess);
  for (const uint32_t b : bits) ASSERT_EQ(b, 0x7F800001u);
}

TYPED_TEST(Sums, Finish) {
  using T = TypeParam;
  Random random(4);
  for (const int64_t size : {2, 63, 64, 785, 3000}) {
    for (const int64_t parts : {1, 7}) {
      const auto in = random.buffer<double>(parts * size, -1, 1);
      Buffer<T> each(size), one(1), wanted(size), wanted_one(1);
      run_in_all_orders(
          "size " + std::to_string(size),
          [&] {
            cuda::finish_sums(TypeOf<T>::dtype, in.data(), parts, size, each.data(), size, nullptr);
            return cuda::finish_sums(TypeOf<T>::dtype, in.data(), parts, size, one.data(), 1,
                                     nullptr);
          },
          each, one);
      double total = 0;
      for (int64_t j = 0; j < size; ++j) {
        double sum = 0;
        for (int64_t p = 0; p < parts; ++p) sum += in[p * size + j];
        wanted[j] = make<T>(sum);
        total += sum;
      }
      wanted_one[0] = make<T>(total);
      expect_close("each", each, wanted, 7);
      expect_close("one", one, wanted_one, 200);
    }
  }
  Buffer<T> nothing(1);
  ASSERT_EQ(cuda::finish_sums(TypeOf<T>::dtype, nullptr, 0, 0, nothing.data(), 1, nullptr),
            cudaSuccess);
  EXPECT_EQ(nothing.at(0), 0.0);
}

TYPED_TEST(Sums, LogScale) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Random random(5);
  for (const int64_t size : {1, 65, 3000}) {
    for (const bool each : {false, true}) {
      const auto scale = random.buffer<A>(each ? size : 1, 0.1, 5);
      Buffer<double> out(1), logs(scale.size());
      run_in_all_orders(
          "size " + std::to_string(size),
          [&] {
            return cuda::log_scale_sum(TypeOf<T>::dtype, scale.data(), scale.size(), size,
                                       out.data(), logs.data(), nullptr);
          },
          out, logs);
      double wanted = 0;
      for (int64_t i = 0; i < size; ++i) wanted += std::log(scale.at(each ? i : 0));
      EXPECT_NEAR(out[0], wanted, 1e-11 * static_cast<double>(size));
      for (int64_t i = 0; i < logs.size(); ++i) EXPECT_NEAR(logs[i], std::log(scale.at(i)), 1e-14);
    }
  }
}

TYPED_TEST(Sums, AddTo) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Random random(6);
  const auto part = random.buffer<T>(785, -1, 1, 1);
  const auto before = random.buffer<A>(785, -1, 1);
  Buffer<A> got(785), wanted(785);
  run_in_all_orders(
      "add_to",
      [&] {
        got.copy(before);
        return cuda::add_to(TypeOf<T>::dtype, got.data(), part.data(), 785, nullptr);
      },
      got);
  for (int64_t i = 0; i < 785; ++i) wanted[i] = before[i] + load(part[i]);
  expect_same_bits("total", got, wanted);
  EXPECT_EQ(cuda::add_to(TypeOf<T>::dtype, nullptr, nullptr, 0, nullptr), cudaSuccess);
}

TEST(SumsCases, Parts) {
  EXPECT_EQ(cuda::sum_parts(0, 784), 1);
  EXPECT_EQ(cuda::sum_parts(1, 0), 1);
  EXPECT_LE(cuda::sum_parts(1 << 30, 784), 64);
  EXPECT_GE(cuda::sum_parts(1 << 30, 784), 3);
  EXPECT_GE(cuda::sum_parts(1 << 30, int64_t{1} << 30), 1);
}

}  // namespace
}  // namespace dvae::test
