// A row's observed elements one after another, and back. Part of kernels.inl.
//
// By hand where an instruction set can: a compiler makes of it one element after another, as long
// as the likelihood of them takes.

#if defined(DVAE_VECTOR_BYTES) && defined(__x86_64__)

// For each set of 8 elements: which of them is the i-th of it, and the how-manieth of it i is.
struct Orders {
  alignas(8) uint8_t compact[256][8], spread[256][8];
};
constexpr Orders make_orders() {
  Orders o{};
  for (int set = 0; set < 256; ++set) {
    int count = 0;
    for (int i = 0; i < 8; ++i) {
      o.spread[set][i] = static_cast<uint8_t>(count);
      if (set >> i & 1) o.compact[set][count++] = static_cast<uint8_t>(i);
    }
  }
  return o;
}
constexpr Orders kOrders = make_orders();

DVAE_HD __m128i load_8(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }

// Elements of T at once: 8, or 4 of 8 bytes, each of which is a pair of a set of 8.
template <class T>
struct Shuffle {
  static constexpr int kCount = sizeof(T) == 8 ? 4 : 8;
  static constexpr uint8_t kPairs[16] = {0x00, 0x03, 0x0c, 0x0f, 0x30, 0x33, 0x3c, 0x3f,
                                         0xc0, 0xc3, 0xcc, 0xcf, 0xf0, 0xf3, 0xfc, 0xff};

  __m128i missing;  // bytes of all ones
  int set;

  DVAE_HD explicit Shuffle(const uint8_t* observed) {
    if constexpr (kCount == 8) {
      missing = _mm_cmpeq_epi8(load_8(observed), _mm_setzero_si128());
    } else {
      int four;
      __builtin_memcpy(&four, observed, 4);
      missing = _mm_cmpeq_epi8(_mm_cvtsi32_si128(four), _mm_setzero_si128());
    }
    set = ~_mm_movemask_epi8(missing) & ((1 << kCount) - 1);
  }
  DVAE_HD int count() const { return __builtin_popcount(static_cast<unsigned>(set)); }
  DVAE_HD void move(const uint8_t (*orders)[8], const T* from, T* to, bool zeros) const {
    const __m128i order = load_8(orders[kCount == 8 ? set : kPairs[set]]);
    if constexpr (sizeof(T) == 2) {
      // Of each element its two bytes.
      const __m128i bytes =
          _mm_add_epi16(_mm_mullo_epi16(_mm_cvtepu8_epi16(order), _mm_set1_epi16(0x0202)),
                        _mm_set1_epi16(0x0100));
      __m128i v = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), bytes);
      if (zeros) v = _mm_andnot_si128(_mm_cvtepi8_epi16(missing), v);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), v);
    } else {
      __m256i v = _mm256_permutevar8x32_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), _mm256_cvtepu8_epi32(order));
      if (zeros) {
        v = _mm256_andnot_si256(
            sizeof(T) == 4 ? _mm256_cvtepi8_epi32(missing) : _mm256_cvtepi8_epi64(missing), v);
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
    }
  }
  DVAE_HD void compact(const T* from, T* to) const { move(kOrders.compact, from, to, false); }
  DVAE_HD void spread(const T* from, T* to) const { move(kOrders.spread, from, to, true); }
};

#if DVAE_VECTOR_BYTES == 64
template <class T>
struct Expansion {
  static constexpr int kCount = 64 / sizeof(T);
  __mmask16 set;

  DVAE_HD explicit Expansion(const uint8_t* observed) {
    const __m128i bytes = kCount == 8 ? load_8(observed)
                                      : _mm_loadu_si128(reinterpret_cast<const __m128i*>(observed));
    set = _mm_test_epi8_mask(bytes, bytes);
  }
  DVAE_HD int count() const { return __builtin_popcount(set); }
  DVAE_HD void compact(const T* from, T* to) const {
    const __m512i v = _mm512_loadu_si512(from);
    _mm512_storeu_si512(to, kCount == 8 ? _mm512_maskz_compress_epi64(static_cast<__mmask8>(set), v)
                                        : _mm512_maskz_compress_epi32(set, v));
  }
  DVAE_HD void spread(const T* from, T* to) const {
    const __m512i v = _mm512_loadu_si512(from);
    _mm512_storeu_si512(to, kCount == 8 ? _mm512_maskz_expand_epi64(static_cast<__mmask8>(set), v)
                                        : _mm512_maskz_expand_epi32(set, v));
  }
};
// Of 16 bits AVX-512 has none.
template <class T>
using Some = std::conditional_t<sizeof(T) == 2, Shuffle<T>, Expansion<T>>;
#else
template <class T>
using Some = Shuffle<T>;
#endif
#define DVAE_SOME 1
#else
#define DVAE_SOME 0
#endif

// `to` has room for `size` elements, and may be `from` or lie before it: what is written lies
// nowhere behind what was read.
template <class T>
void compact(const void* from_in, const uint8_t* observed, int64_t size, void* to_in) {
  const T* from = static_cast<const T*>(from_in);
  T* to = static_cast<T*>(to_in);
  int64_t j = 0;
#if DVAE_SOME
  for (; j + Some<T>::kCount <= size; j += Some<T>::kCount) {
    const Some<T> some(observed + j);
    some.compact(from + j, to);
    to += some.count();
  }
#endif
  for (; j < size; ++j) {
    *to = from[j];
    to += observed[j] != 0;
  }
}

// From the end, `count` elements; `to` may be `from` or lie behind it, which has room for `size`
// elements too.
template <class T>
void spread(const void* from_in, const uint8_t* observed, int64_t size, int64_t count,
            void* to_in) {
  const T* from = static_cast<const T*>(from_in) + count;
  T* to = static_cast<T*>(to_in);
  int64_t j = size;
#if DVAE_SOME
  const int64_t whole = size / Some<T>::kCount * Some<T>::kCount;
#else
  const int64_t whole = 0;
#endif
  for (; j > whole;) {
    --j;
    const bool seen = observed[j] != 0;
    from -= seen;
    to[j] = seen ? *from : T{};
  }
#if DVAE_SOME
  while (j > 0) {
    j -= Some<T>::kCount;
    const Some<T> some(observed + j);
    from -= some.count();
    some.spread(from, to + j);
  }
#endif
}
#undef DVAE_SOME

template <class T>
double sum_of(const void* values, int64_t size) {
  const T* v = static_cast<const T*>(values);
  alignas(64) double lanes[kLanes] = {};
  for_lanes(size, [&](int64_t i, int lane) __attribute__((always_inline)) {
    lanes[lane] = lanes[lane] + static_cast<double>(load(v[i]));
  });
  return sum_lanes(lanes);
}
