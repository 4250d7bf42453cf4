// log_weights and its gradients, over whole tensors and tiles of rows.
#include <sys/mman.h>

#include "likelihood_setup.h"

namespace dvae::test {
namespace {

DVAE_TYPED_SUITE(LogWeights);

// 1985 is more than a thread adds up before a logarithm, with a warp a row.
template <class T, class F>
void for_setups(const F& body) {
  Random random(3);
  for (const int64_t size : {1, 63, 64, 65, 784, 785, 4112}) {
    for (const ScaleOf scale : kScales) {
      Likelihood<T> s(3, size > 100 ? 3 : 5, size, scale, size % 3 == 1 ? 1 : 0, random);
      body(s);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

template <class T>
void check_forward(Likelihood<T>& s, bool bias) {
  SCOPED_TRACE(s.name() + (bias ? " bias" : ""));
  Buffer<accumulate_t<T>> got(s.rows()), wanted(s.rows());
  cuda::LogWeights p = s.forward();
  auto host = s.template host<LogWeightParams>();
  p.log_w = got.data();
  host.log_w = wanted.data();
  if (bias) host.bias = p.bias = s.bias_of_layer();
  run_in_all_orders(
      s.name() + (bias ? " bias" : ""),
      [&] { return cuda::log_weights(s.likelihood(), TypeOf<T>::dtype, s.kind(), p, nullptr); },
      got);
  s.table().log_weights[s.l()][s.t](host, s.kind(), 0, s.rows());
  expect_close("log_w", got, wanted, s.terms());
}

TYPED_TEST(LogWeights, Forward) {
  using T = TypeParam;
  for_setups<T>([](Likelihood<T>& s) {
    check_forward(s, false);
    if (s.kind() != ScaleKind::kFull) check_forward(s, true);
  });
}

// One case of every kernel: by element and in packs, a row a warp and four rows at once.
TYPED_TEST(LogWeights, ForwardOfOthers) {
  using T = TypeParam;
  Random random(13);
  for (const LikelihoodKind kind : kOthers) {
    for (const ScaleOf scale : kScales) {
      if (!takes(kind, scale)) continue;
      for (const auto& [samples, size] : {std::pair{3, 65}, std::pair{3, 784}, std::pair{4, 48}}) {
        Device device;
        device->multiprocessors = samples == 4 ? 1 : 3;
        Likelihood<T> s(samples == 4 ? 33 : 3, samples, size, scale, 0, random, kind);
        check_forward(s, false);
        if (is_light(kind) && scale == ScaleOf::kEach) check_forward(s, true);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// Four rows of eight lanes each: with work enough for the device. Chunks of samples that are
// whole, and one with a row left over.
TYPED_TEST(LogWeights, ForwardOfManyRows) {
  using T = TypeParam;
  Random random(4);
  Device device;
  device->multiprocessors = 1;
  for (const int64_t samples : {4, 33}) {
    for (const ScaleOf scale : kScales) {
      for (const int64_t size : {16, 784, 2000}) {
        if (size > 16 && samples > 4) continue;
        Likelihood<T> s(samples == 4 ? 33 : 4, samples, size, scale, 0, random);
        check_forward(s, false);
        if (s.kind() != ScaleKind::kFull) check_forward(s, true);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// Params (and full scales) hold a tile of rows, as linear_log_weights calls it.
TYPED_TEST(LogWeights, Tile) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Random random(5);
  for (const int64_t multiprocessors : {3, 1}) {
    Device device;
    device->multiprocessors = static_cast<int>(multiprocessors);
    for (const ScaleOf scale : kScales) {
      Likelihood<T> s(40, 8, 48, scale, 0, random);
      const int64_t first = 8 * 3 + 5, rows = 8 * 65 + 6;
      Buffer<T> tile(rows * s.size), tile_scale(scale == ScaleOf::kFull ? rows * s.size : 0);
      std::memcpy(tile.data(), s.params.data() + first * s.size, tile.bytes().size());
      if (tile_scale.size() > 0) {
        std::memcpy(tile_scale.data(), s.full_scale.data() + first * s.size,
                    tile_scale.bytes().size());
      }
      Buffer<A> got(s.rows()), wanted(s.rows());
      cuda::LogWeights p = s.forward();
      p.params = tile.data();
      if (scale == ScaleOf::kFull) p.scale = tile_scale.data();
      p.first_row = p.begin = first;
      p.end = first + rows;
      p.log_w = got.data();
      run_in_all_orders(
          s.name(),
          [&] { return cuda::log_weights(s.likelihood(), TypeOf<T>::dtype, s.kind(), p, nullptr); },
          got);
      auto host = s.template host<LogWeightParams>();
      host.log_w = wanted.data();
      s.table().log_weights[s.l()][s.t](host, s.kind(), first, first + rows);
      expect_close("log_w", got, wanted, s.terms());  // NaN outside the tile
    }
  }
}

// Logits of 0 make the largest product of 1 + e^−|l|, 2 an element: a logarithm must come in time,
// with a warp a row and with eight lanes.
TYPED_TEST(LogWeights, LongProducts) {
  using T = TypeParam;
  Random random(11);
  for (const auto& [samples, size] : {std::pair{3, 8200}, std::pair{4, 4112}, std::pair{3, 4099}}) {
    Device device;
    device->multiprocessors = samples == 4 ? 1 : 3;
    Likelihood<T> s(samples == 4 ? 33 : 1, samples, size, ScaleOf::kNone, 0, random);
    std::memset(s.params.data(), 0, s.params.bytes().size());
    Buffer<accumulate_t<T>> log_w(s.rows());
    cuda::LogWeights p = s.forward();
    p.log_ratio = nullptr;
    p.log_w = log_w.data();
    ASSERT_EQ(cuda::log_weights(s.likelihood(), TypeOf<T>::dtype, s.kind(), p, nullptr),
              cudaSuccess);
    for (int64_t r = 0; r < s.rows(); ++r)
      ASSERT_NEAR(log_w[r], -size * std::log(2.0), size * 2e-6);
  }
}

// The limits of ±inf logits, and NaN in one row only.
TYPED_TEST(LogWeights, NotFinite) {
  using T = TypeParam;
  Random random(6);
  for (const int64_t samples : {5, 4}) {
    Device device;
    device->multiprocessors = samples == 4 ? 1 : 3;
    for (const ScaleOf scale : {ScaleOf::kNone, ScaleOf::kFull}) {
      Likelihood<T> s(samples == 4 ? 33 : 3, samples, 65, scale, 0, random);
      s.x[0] = 1, s.x[1] = 0, s.x[2] = 1;
      s.params[0] = make<T>(kInf);               // log p = 0
      s.params[1] = make<T>(-kInf);              // 0
      s.params[s.size + 2] = make<T>(-kInf);     // −inf
      s.params[2 * s.size + 3] = make<T>(kNaN);
      s.log_ratio[3] = -static_cast<accumulate_t<T>>(kInf);
      check_forward(s, false);
    }
  }
}

// --- gradients --------------------------------------------------------------------------------

// Sums over rows as the operators make them from parts.
template <class A>
struct Sums {
  Buffer<double> parts;
  Buffer<A> out;

  Sums(int64_t count_parts, int64_t size, int64_t count) : parts(count_parts * size), out(count) {}
  cudaError_t finish(int64_t count_parts, int64_t size) {
    return cuda::finish_sums(TypeOf<A>::dtype, parts.data(), count_parts, size, out.data(),
                             out.size(), nullptr);
  }
};

template <class T>
void check_backward(Likelihood<T>& s, bool sums, int64_t parts, bool in_place) {
  SCOPED_TRACE(s.name() + (sums ? " sums" : "") + (in_place ? " in place" : ""));
  using A = accumulate_t<T>;
  const int64_t n = s.rows() * s.size;
  const bool scale_sum = s.shared();
  Buffer<T> d_params(n, s.size % 3 == 1), d_scale(s.full_scale.size()), wanted(n),
      wanted_scale(s.full_scale.size());
  Sums<A> bias_sums(parts, s.size, s.size);
  Sums<A> scale_sums(parts, s.size, s.scale_of == ScaleOf::kEach ? s.size : 1);
  cuda::LogWeightGrads p = s.backward();
  auto host = s.template host<LogWeightGradParams>();
  p.grad_params = d_params.data();
  p.grad_scale = d_scale.data();
  p.parts = parts;
  if (sums) p.bias_parts = bias_sums.parts.data();
  if (scale_sum) p.scale_parts = scale_sums.parts.data();
  if (sums) host.bias = p.bias = s.bias_of_layer();
  if (in_place) p.params = d_params.data();
  run_with_fixed_grid(
      s.name() + (sums ? " sums" : "") + (in_place ? " in place" : "") + " parts " +
          std::to_string(parts),
      [&] {
        if (in_place) d_params.copy(s.params);
        cudaError_t error =
            cuda::log_weights_backward(s.likelihood(), TypeOf<T>::dtype, s.kind(), p, nullptr);
        if (sums && error == cudaSuccess) error = bias_sums.finish(parts, s.size);
        if (scale_sum && error == cudaSuccess) error = scale_sums.finish(parts, s.size);
        return error;
      },
      d_params, d_scale, bias_sums.parts, bias_sums.out, scale_sums.parts, scale_sums.out);
  host.grad_params = wanted.data();
  host.grad_scale = wanted_scale.data();
  std::vector<double> scale_total(static_cast<size_t>(whole_blocks(s.size)));
  s.table().log_weights_backward[s.l()][s.t](host, s.kind(),
                                             scale_sum ? scale_total.data() : nullptr, 0, s.rows());
  const double largest = s.kind() == ScaleKind::kNone ? 2 : 300;
  expect_close("params", d_params, wanted, largest);
  expect_close("scale", d_scale, wanted_scale, largest);
  const double rows = static_cast<double>(s.rows());
  if (sums) {
    // The CPU adds what was rounded to T.
    Buffer<A> bias(s.size);
    for (int64_t j = 0; j < s.size; ++j) {
      double sum = 0;
      for (int64_t r = 0; r < s.rows(); ++r) sum += wanted.at(r * s.size + j);
      bias[j] = static_cast<A>(sum);
    }
    const double rounding = sizeof(T) == 2 ? TypeOf<T>::epsilon / 4e-6 : 1;
    expect_close("bias sums", bias_sums.out, bias, largest * rows * rounding);
  }
  if (scale_sum) {
    Buffer<A> scale(scale_sums.out.size());
    double total = 0;
    for (int64_t j = 0; j < s.size; ++j) {
      if (scale.size() == s.size) scale[j] = static_cast<A>(scale_total[static_cast<size_t>(j)]);
      total += scale_total[static_cast<size_t>(j)];
    }
    if (scale.size() == 1) scale[0] = static_cast<A>(total);
    expect_close("scale sums", scale_sums.out, scale,
                 largest * rows * (scale.size() == 1 ? std::sqrt(s.size) : 1));
  }
}

TYPED_TEST(LogWeights, Backward) {
  using T = TypeParam;
  for_setups<T>([](Likelihood<T>& s) {
    if (s.size > 1000) return;
    for (const bool in_place : {false, true}) check_backward(s, false, 2, in_place);
    if (s.kind() != ScaleKind::kFull) check_backward(s, true, 3, true);
  });
}

TYPED_TEST(LogWeights, BackwardOfOthers) {
  using T = TypeParam;
  Random random(14);
  for (const LikelihoodKind kind : kOthers) {
    for (const ScaleOf scale : kScales) {
      if (!takes(kind, scale)) continue;
      for (const int64_t size : {65, 256}) {
        Likelihood<T> s(3, 5, size, scale, 0, random, kind);
        check_backward(s, false, 2, true);
        if (scale != ScaleOf::kOne && scale != ScaleOf::kFull) check_backward(s, true, 3, false);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// More rows than a thread adds up before it goes over to float64, and more parts than rows.
TYPED_TEST(LogWeights, BackwardSums) {
  using T = TypeParam;
  Random random(7);
  for (const ScaleOf scale : {ScaleOf::kNone, ScaleOf::kEach}) {
    Likelihood<T> s(30, 7, 256, scale, 0, random);
    check_backward(s, true, 2, false);
    Likelihood<T> few(1, 2, 65, scale, 0, random);
    check_backward(few, true, 9, false);
  }
}

// The second of two tiles adds to the first's sums.
TEST(LogWeightsCases, SumsOverTiles) {
  Random random(8);
  Likelihood<float> s(3, 5, 65, ScaleOf::kEach, 0, random);
  Sums<float> whole(2, s.size, s.size), tiles(2, s.size, s.size);
  Buffer<float> out(s.rows() * s.size), tile_out(s.rows() * s.size);
  cuda::LogWeightGrads p = s.backward();
  p.parts = 2;
  p.grad_params = out.data();
  p.scale_parts = whole.parts.data();
  const auto run = [&] {
    return cuda::log_weights_backward(LikelihoodKind::kGaussian, DType::kFloat32,
                                      ScaleKind::kShared, p, nullptr);
  };
  ASSERT_EQ(run(), cudaSuccess);
  ASSERT_EQ(whole.finish(2, s.size), cudaSuccess);
  p.scale_parts = tiles.parts.data();
  for (const auto& [begin, end] : {std::pair{0, 13}, std::pair{13, 30}}) {
    p.begin = p.first_row = begin;
    p.end = end;
    p.params = s.params.data() + begin * s.size;
    p.grad_params = tile_out.data() + begin * s.size;
    p.accumulate = begin > 0;
    ASSERT_EQ(run(), cudaSuccess);
  }
  ASSERT_EQ(tiles.finish(2, s.size), cudaSuccess);
  expect_same_bits("params", tile_out, out);
  expect_close("sums", tiles.out, whole.out, 300 * 30);
}

// A gradient of 0 stops a derivative that is not finite; NaN stays in its element.
TEST(LogWeightsCases, BackwardNotFinite) {
  Random random(9);
  Likelihood<float> s(2, 3, 66, ScaleOf::kNone, 0, random);
  s.grad[0] = 0;
  s.params[0] = s.params[s.size] = static_cast<float>(kNaN);
  s.params[s.size + 1] = static_cast<float>(kInf);
  check_backward(s, false, 1, false);
  Buffer<float> out(s.rows() * s.size);
  cuda::LogWeightGrads p = s.backward();
  p.grad_params = out.data();
  ASSERT_EQ(cuda::log_weights_backward(s.likelihood(), DType::kFloat32, s.kind(), p, nullptr),
            cudaSuccess);
  EXPECT_EQ(out[0], 0.0f);
  EXPECT_TRUE(std::isnan(out[s.size]));
  for (int64_t i = 1; i < s.size; ++i) EXPECT_TRUE(std::isfinite(out[s.size + i]));
}

// Memory that costs nothing until it is touched.
template <class T>
class Sparse {
 public:
  explicit Sparse(int64_t n) : bytes_(static_cast<size_t>(n) * sizeof(T)) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  ~Sparse() {
    if (data_ != MAP_FAILED) munmap(data_, bytes_);
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  bool mapped() const { return data_ != MAP_FAILED; }
  T* data() { return static_cast<T*>(data_); }

 private:
  size_t bytes_;
  void* data_;
};

// The last rows of a tensor of more than 2³² elements, in the vector and the scalar kernels.
TEST(LogWeightsCases, BeyondThirtyTwoBits) {
  Random random(12);
  for (const int64_t size : {784, 785}) {
    Likelihood<BFloat16> s(4, 5, size, ScaleOf::kNone, 0, random);
    const int64_t all = (int64_t{1} << 32) / size / s.rows() * s.rows() + 2 * s.rows();
    const int64_t first = all - s.rows();
    Sparse<BFloat16> params(all * size), d_params(all * size);
    Sparse<float> log_w(all), log_ratio(all), grad(all);
    if (!params.mapped() || !d_params.mapped()) GTEST_SKIP() << "no address space";
    std::memcpy(params.data() + first * size, s.params.data(), s.params.bytes().size());
    std::memcpy(log_ratio.data() + first, s.log_ratio.data(), s.log_ratio.bytes().size());
    std::memcpy(grad.data() + first, s.grad.data(), s.grad.bytes().size());
    cuda::LogWeights p = s.forward();
    cuda::LogWeightGrads q = s.backward();
    p.log_ratio = log_ratio.data();
    p.log_w = log_w.data();
    q.grad = grad.data();
    q.grad_params = d_params.data();
    p.params = q.params = params.data();
    p.rows = q.rows = all / s.samples;
    p.begin = q.begin = first;
    p.end = q.end = all;
    ASSERT_EQ(cuda::log_weights(s.likelihood(), DType::kBFloat16, s.kind(), p, nullptr),
              cudaSuccess);
    ASSERT_EQ(cuda::log_weights_backward(s.likelihood(), DType::kBFloat16, s.kind(), q, nullptr),
              cudaSuccess);
    Buffer<float> got(s.rows()), wanted(s.rows());
    Buffer<BFloat16> d_got(s.params.size()), d_wanted(s.params.size());
    std::memcpy(got.data(), log_w.data() + first, got.bytes().size());
    std::memcpy(d_got.data(), d_params.data() + first * size, d_got.bytes().size());
    auto host = s.host<LogWeightParams>();
    auto host_grad = s.host<LogWeightGradParams>();
    host.log_w = wanted.data();
    host_grad.grad_params = d_wanted.data();
    s.table().log_weights[0][s.t](host, s.kind(), 0, s.rows());
    s.table().log_weights_backward[0][s.t](host_grad, s.kind(), nullptr, 0, s.rows());
    expect_close("log_w", got, wanted, s.terms());
    expect_close("params", d_got, d_wanted, 2);
  }
}

TEST(LogWeightsCases, Empty) {
  Random random(10);
  Likelihood<float> none(0, 3, 5, ScaleOf::kEach, 0, random);
  const cuda::LogWeights p = none.forward();
  const int64_t before = emulator::counts.launches;
  EXPECT_EQ(cuda::log_weights(none.likelihood(), DType::kFloat32, none.kind(), p, nullptr),
            cudaSuccess);
  EXPECT_EQ(emulator::counts.launches, before);
  // Sums over no rows are 0.
  Buffer<double> parts(2 * 5);
  cuda::LogWeightGrads sums = none.backward();
  sums.parts = 2;
  sums.scale_parts = parts.data();
  EXPECT_EQ(
      cuda::log_weights_backward(none.likelihood(), DType::kFloat32, none.kind(), sums, nullptr),
      cudaSuccess);
  for (int64_t i = 0; i < parts.size(); ++i) EXPECT_EQ(parts[i], 0.0);

  // No dimensions: log_w is log_ratio.
  Likelihood<float> flat(2, 3, 0, ScaleOf::kNone, 0, random);
  Buffer<float> log_w(flat.rows());
  cuda::LogWeights q = flat.forward();
  q.log_w = log_w.data();
  ASSERT_EQ(cuda::log_weights(flat.likelihood(), DType::kFloat32, flat.kind(), q, nullptr),
            cudaSuccess);
  for (int64_t i = 0; i < log_w.size(); ++i) EXPECT_EQ(log_w[i], flat.log_ratio[i]);
  EXPECT_EQ(cuda::log_weights_backward(flat.likelihood(), DType::kFloat32, flat.kind(),
                                       flat.backward(), nullptr),
            cudaSuccess);
}

}  // namespace
}  // namespace dvae::test
