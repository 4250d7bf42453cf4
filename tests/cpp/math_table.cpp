// Compiled once per ISA, with DVAE_TEST_LEVEL 0, 1 or 2.
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header, of its undefined registers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#if DVAE_TEST_LEVEL == 2
#define DVAE_ISA isa_avx512
#define DVAE_TEST_TABLE math_avx512
#include "cpu/target_avx512.h"
#elif DVAE_TEST_LEVEL == 1
#define DVAE_ISA isa_avx2
#define DVAE_TEST_TABLE math_avx2
#include "cpu/target_avx2.h"
#else
#define DVAE_ISA isa_base
#define DVAE_TEST_TABLE math_base
#define DVAE_HAVE_TARGET 1
#endif

#if DVAE_HAVE_TARGET
#include "core/half.h"
#include "core/math.h"
#include "core/noise.h"

namespace dvae::test {
namespace {

#include "cpu/sixteen.inl"

#define DVAE_MAP(name, In, Out, call)                                          \
  void name##_array(const In* __restrict in, Out* __restrict out, int64_t n) { \
    for (int64_t i = 0; i < n; ++i) out[i] = call(in[i]);                      \
  }
#define DVAE_OF_FLOATS(name) DVAE_MAP(name, float, float, dvae::name)
#define DVAE_ADDRESS(name) name##_array,
#define DVAE_EACH(f)                                                                              \
  f(exp) f(exp_nonpositive) f(log) f(log1p) f(softplus) f(sigmoid) f(log1p_unit) f(one_minus_exp) \
      f(tanh) f(sqrt) f(abs)
DVAE_EACH(DVAE_OF_FLOATS)
DVAE_MAP(log_uniform, uint32_t, float, dvae::log_uniform)
DVAE_MAP(threshold, float, int32_t, dvae::threshold)

void sincos_array(const uint32_t* __restrict v, float* __restrict s, float* __restrict c,
                  int64_t n) {
  for (int64_t i = 0; i < n; ++i) sincos_turn(v[i], s[i], c[i]);
}

template <class A>
void normals_array(const uint32_t* __restrict w0, const uint32_t* __restrict w1, A* __restrict n0,
                   A* __restrict n1, int64_t n) {
  for (int64_t i = 0; i < n; ++i) normal_pair(w0[i], w1[i], n0[i], n1[i]);
}

template <class T>
void load_array(const uint16_t* __restrict bits, float* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = load(T{bits[i]});
}

template <class T>
void store_array(const float* __restrict in, uint16_t* __restrict bits, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T to;
    store(to, in[i]);
    bits[i] = to.bits;
  }
}

// As the kernels over rows have them.
template <class T>
void read_array(const uint16_t* bits, float* out, int64_t n) {
  Read<T> row(reinterpret_cast<const T*>(bits));
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t m = n - j < kLanes ? n - j : kLanes;
    row.take(j, m);
    for (int64_t i = 0; i < m; ++i) out[j + i] = row.of(j, i);
  }
}

template <class T>
void made_array(const float* in, uint16_t* bits, int64_t n) {
  Made<T> row(reinterpret_cast<T*>(bits));
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t m = n - j < kLanes ? n - j : kLanes;
    for (int64_t i = 0; i < m; ++i) row.put(j, i, in[j + i], true);
    row.leave(j, 0, m);
  }
}

}  // namespace
}  // namespace dvae::test
#endif

// Ends the target before the tests' own header brings in inline functions of the standard library.
#if DVAE_TEST_LEVEL > 0
#include "cpu/target_end.h"
#endif

#include "math_table.h"

namespace dvae::test {

#if DVAE_HAVE_TARGET
namespace {
constexpr MathTable kTable = {
    DVAE_EACH(DVAE_ADDRESS) log_uniform_array,
    sincos_array,
    normals_array<float>,
    normals_array<double>,
    threshold_array,
    load_array<Half>,
    load_array<BFloat16>,
    store_array<Half>,
    store_array<BFloat16>,
    read_array<Half>,
    read_array<BFloat16>,
    made_array<Half>,
    made_array<BFloat16>,
};
}  // namespace
const MathTable* DVAE_TEST_TABLE() { return &kTable; }
#else
const MathTable* DVAE_TEST_TABLE() { return nullptr; }
#endif

}  // namespace dvae::test
