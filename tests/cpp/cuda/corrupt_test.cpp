// corrupt and its gradients: masks bit for bit the CPU's, Gaussian noise to rounding.
#include "core/corruptions.h"
#include "support.h"

namespace dvae::test {
namespace {

constexpr int64_t kSeed = -1234567890123456789;
constexpr NoiseParams kNoise = {&kSeed, 1000, 7};
constexpr CorruptionKind kKinds[] = {CorruptionKind::kIdentity, CorruptionKind::kMasking,
                                     CorruptionKind::kSaltAndPepper, CorruptionKind::kBitFlip,
                                     CorruptionKind::kAdditiveGaussian};

// Which parameters have a value an element.
struct Each {
  bool rate, salt;
};

template <class T>
struct CorruptSetup {
  using A = accumulate_t<T>;
  int64_t copies, examples, size;
  CorruptionKind kind;
  Buffer<float> rate, salt;
  Buffer<A> std;
  std::vector<int32_t> hit, one;
  std::vector<A> std_table;
  CorruptParams device{};
  cpu::CorruptTables host{};

  CorruptSetup(CorruptionKind kind_in, int64_t copies_in, int64_t examples_in, int64_t size_in,
               Each each, Random& random)
      : copies(copies_in),
        examples(examples_in),
        size(size_in),
        kind(kind_in),
        rate(random.buffer<float>(each.rate ? size : 1, 0, 1, 1)),
        salt(random.buffer<float>(each.salt ? size : 1, 0, 1, 1)),
        std(random.buffer<A>(each.rate ? size : 1, 0.1, 2, 1)) {
    // Thresholds at the ends of their range.
    if (each.rate && size > 2) rate[1] = 0, rate[2] = 1;
    const bool salted = kind == CorruptionKind::kSaltAndPepper;
    for (int64_t i = 0; i < whole_blocks(size); ++i) {
      const float r = rate[each.rate ? std::min(i, size - 1) : 0];
      hit.push_back(threshold(r));
      one.push_back(salted ? threshold(r * salt[each.salt ? std::min(i, size - 1) : 0]) : 0);
      std_table.push_back(std[each.rate ? std::min(i, size - 1) : 0]);
    }
    device.rate = rate.data();
    device.salt = salted ? salt.data() : nullptr;
    device.std = std.data();
    device.rate_step = each.rate ? 1 : 0;
    device.salt_step = each.salt ? 1 : 0;
    device.noise = kNoise;
    device.copies = copies;
    device.examples = examples;
    device.size = size;
    device.kind = kind;
    static_cast<CorruptParams&>(host) = device;
    host.hit = hit.data();
    host.one = one.data();
    host.stds = std_table.data();
    host.table_stride = kBlock;
  }
  std::string name() const {
    return "kind " + std::to_string(static_cast<int>(kind)) + " D=" + std::to_string(size) +
           " steps " + std::to_string(device.rate_step) + std::to_string(device.salt_step);
  }
  void point(const T* in, T* out) {
    host.in = device.in = in;
    host.out = device.out = out;
  }
};

DVAE_TYPED_SUITE(Corrupt);

// All kinds, sizes, alignments, and layouts of the parameters.
template <class T, class F>
void for_setups(const F& body) {
  Random random(3);
  for (const int64_t size : kSizes) {
    for (const CorruptionKind kind : kKinds) {
      for (const Each each : {Each{false, false}, Each{true, false}, Each{true, true}}) {
        if (each.salt && kind != CorruptionKind::kSaltAndPepper) continue;
        for (const int64_t offset : {0, 1}) {
          CorruptSetup<T> s(kind, 3, 4, size, each, random);
          body(s, offset, random);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

TYPED_TEST(Corrupt, Forward) {
  using T = TypeParam;
  constexpr int t = static_cast<int>(TypeOf<T>::dtype);
  for_setups<T>([](CorruptSetup<T>& s, int64_t offset, Random& random) {
    auto x = random.data<T>(s.examples * s.size, offset);
    x[0] = make<T>(kNaN);
    x[s.size / 2] = make<T>(kInf);
    Buffer<T> got(s.copies * s.examples * s.size, offset), wanted(got.size());
    s.point(x.data(), got.data());
    run_in_all_orders(
        s.name(), [&] { return cuda::corrupt(TypeOf<T>::dtype, s.device, nullptr); }, got);
    s.point(x.data(), wanted.data());
    cpu_kernels().corrupt[t](s.host, 0, s.copies * s.examples);
    if (s.kind == CorruptionKind::kAdditiveGaussian) {
      expect_close("out", got, wanted, 14);
    } else {
      expect_same_bits("out", got, wanted);
    }
  });
}

TYPED_TEST(Corrupt, Backward) {
  using T = TypeParam;
  constexpr int t = static_cast<int>(TypeOf<T>::dtype);
  for_setups<T>([](CorruptSetup<T>& s, int64_t offset, Random& random) {
    auto grad = random.buffer<T>(s.copies * s.examples * s.size, -1, 1, offset);
    grad[0] = make<T>(kNaN);
    Buffer<T> got(s.examples * s.size, offset), wanted(got.size());
    s.point(grad.data(), got.data());
    run_in_all_orders(
        s.name(), [&] { return cuda::corrupt_backward(TypeOf<T>::dtype, s.device, nullptr); }, got);
    s.point(grad.data(), wanted.data());
    cpu_kernels().corrupt_backward[t](s.host, 0, s.examples);
    expect_same_bits("grad", got, wanted);  // added in the same order
  });
}

TYPED_TEST(Corrupt, BackwardStd) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  constexpr int t = static_cast<int>(TypeOf<T>::dtype);
  Random random(4);
  for (const int64_t size : kSizes) {
    for (const int64_t parts : {1, 2, 5}) {
      for (const bool each : {false, true}) {
        CorruptSetup<T> s(CorruptionKind::kAdditiveGaussian, 3, 4, size, {each, false}, random);
        const auto grad = random.buffer<T>(s.copies * s.examples * size, -1, 1, 1);
        s.point(grad.data(), nullptr);
        Buffer<double> sums(parts * size);
        Buffer<A> got(each ? size : 1), wanted(got.size());
        run_with_fixed_grid(
            s.name() + " parts " + std::to_string(parts),
            [&] {
              const cudaError_t error = cuda::corrupt_backward_std(TypeOf<T>::dtype, s.device,
                                                                   sums.data(), parts, nullptr);
              if (error != cudaSuccess) return error;
              return cuda::finish_sums(TypeOf<A>::dtype, sums.data(), parts, size, got.data(),
                                       got.size(), nullptr);
            },
            sums, got);
        std::vector<double> out(static_cast<size_t>(whole_blocks(size)));
        cpu_kernels().corrupt_backward_std[t](s.host, out.data(), 0, whole_blocks(size) / kBlock);
        double total = 0;
        for (int64_t i = 0; i < size; ++i) {
          if (each) wanted[i] = static_cast<A>(out[static_cast<size_t>(i)]);
          total += out[static_cast<size_t>(i)];
        }
        if (!each) wanted[0] = static_cast<A>(total);
        expect_close("std", got, wanted, each ? 30 : 30 * std::sqrt(static_cast<double>(size)));
      }
    }
  }
}

// More rows than a thread adds up before it goes over to float64.
TEST(CorruptCases, ManyRowsOfStd) {
  Random random(5);
  CorruptSetup<float> s(CorruptionKind::kAdditiveGaussian, 2, 150, 65, {true, false}, random);
  const auto grad = random.buffer<float>(s.copies * s.examples * s.size, -1, 1);
  s.point(grad.data(), nullptr);
  Buffer<double> got(s.size), wanted(whole_blocks(s.size));
  run_with_fixed_grid(
      "300 rows",
      [&] { return cuda::corrupt_backward_std(DType::kFloat32, s.device, got.data(), 1, nullptr); },
      got);
  cpu_kernels().corrupt_backward_std[0](s.host, wanted.data(), 0, 2);
  for (int64_t i = 0; i < s.size; ++i) EXPECT_NEAR(got[i], wanted[i], 1e-4);
}

// A thread makes several copies: only where there are more of them than threads.
TEST(CorruptCases, SeveralCopiesAThread) {
  Random random(8);
  Device device;
  device->multiprocessors = 1;
  for (const int64_t size : {784, 785}) {
    for (const CorruptionKind kind : kKinds) {
      CorruptSetup<float> s(kind, 3, size == 784 ? 40 : 12, size, {false, false}, random);
      const auto x = random.data<float>(s.examples * size);
      Buffer<float> got(s.copies * x.size()), wanted(got.size());
      s.point(x.data(), got.data());
      run_in_all_orders(
          s.name(), [&] { return cuda::corrupt(DType::kFloat32, s.device, nullptr); }, got);
      s.point(x.data(), wanted.data());
      cpu_kernels().corrupt[0](s.host, 0, s.copies * s.examples);
      expect_close("out", got, wanted, kind == CorruptionKind::kAdditiveGaussian ? 14 : 0);
    }
  }
}

// A batch, a copy or an element more must not change the rest.
TEST(CorruptCases, DependsOnTheIndicesAlone) {
  Random random(6);
  CorruptSetup<float> all(CorruptionKind::kBitFlip, 3, 4, 64, {false, false}, random);
  const auto x = random.data<float>(4 * 64);
  Buffer<float> whole(3 * 4 * 64), part(64);
  all.point(x.data(), whole.data());
  ASSERT_EQ(cuda::corrupt(DType::kFloat32, all.device, nullptr), cudaSuccess);
  CorruptParams one = all.device;
  one.copies = one.examples = 1;
  one.noise.first_sample += 2;
  one.noise.first_example += 3;
  one.in = x.data() + 3 * 64;
  one.out = part.data();
  ASSERT_EQ(cuda::corrupt(DType::kFloat32, one, nullptr), cudaSuccess);
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(part[i], whole[(2 * 4 + 3) * 64 + i]);
}

TEST(CorruptCases, NothingToDo) {
  const int64_t before = emulator::counts.launches;
  CorruptParams p{};
  for (int empty = 0; empty < 3; ++empty) {
    p.copies = empty == 0 ? 0 : 2;
    p.examples = empty == 1 ? 0 : 2;
    p.size = empty == 2 ? 0 : 2;
    EXPECT_EQ(cuda::corrupt(DType::kFloat32, p, nullptr), cudaSuccess);
  }
  EXPECT_EQ(emulator::counts.launches, before);
}

// No copies: the gradient of nothing is 0, and so is that of std.
TEST(CorruptCases, GradientOfNothing) {
  Random random(7);
  CorruptSetup<float> s(CorruptionKind::kAdditiveGaussian, 0, 4, 65, {true, false}, random);
  Buffer<float> out(4 * 65);
  s.point(nullptr, out.data());
  ASSERT_EQ(cuda::corrupt_backward(DType::kFloat32, s.device, nullptr), cudaSuccess);
  for (int64_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], 0.0f);
  s.device.examples = 0;
  Buffer<double> parts(3 * 65);
  ASSERT_EQ(cuda::corrupt_backward_std(DType::kFloat32, s.device, parts.data(), 3, nullptr),
            cudaSuccess);
  for (int64_t i = 0; i < parts.size(); ++i) ASSERT_EQ(parts[i], 0.0);
}

}  // namespace
}  // namespace dvae::test
