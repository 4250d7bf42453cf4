// What the kernels of every operator are made of: lanes, their sums, and typed access.
// Part of kernels.inl.

DVAE_HD int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
DVAE_HD const T* at(const void* base, int64_t offset) {
  return static_cast<const T*>(base) + offset;
}
template <class T>
DVAE_HD T* at(void* base, int64_t offset) {
  return static_cast<T*>(base) + offset;
}

template <class A>
DVAE_HD void fill(A* p, int64_t n, A value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

// total += part, which starts again.
template <class A>
DVAE_HD void fold(A* part, A* total, int64_t n) {
  for (int64_t i = 0; i < n; ++i) total[i] = total[i] + part[i];
  fill(part, n, A(0));
}

// body(i, lane) for i in [0, n): whole groups of 16 lanes with a constant trip count, then the
// rest. The lanes are independent, so the compiler vectorises each group.
template <class F>
DVAE_HD void for_lanes(int64_t n, const F& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) body(i + lane, lane);
  }
  for (int lane = 0; lane < n - i; ++lane) body(i + lane, lane);
}

// The sum of 16 accumulators, in a fixed tree. Every width is a constant: as a loop over widths GCC
// 12 leaves the branches in, 20 ns a sum and not 5.
template <int kWidth = kLanes / 2, class A>
DVAE_HD A sum_lanes(A* v) {
  for (int i = 0; i < kWidth; ++i) v[i] = v[i] + v[i + kWidth];
  if constexpr (kWidth > 1) return sum_lanes<kWidth / 2>(v);
  return v[0];
}

// How many bytes are not 0: sums of bytes, which 255 rounds do not overflow, and then of those.
inline int64_t count_observed(const uint8_t* observed, int64_t size) {
  int64_t count = 0, j = 0;
#if defined(DVAE_VECTOR_BYTES) && defined(__x86_64__) && DVAE_VECTOR_BYTES == 64
  while (j < size) {
    __m512i sums = _mm512_setzero_si512();
    const int64_t stop = min64(size, j + 255 * 64);
    for (; j + 64 <= stop; j += 64) {
      const __m512i bytes = _mm512_loadu_si512(observed + j);
      sums = _mm512_add_epi8(sums, _mm512_min_epu8(bytes, _mm512_set1_epi8(1)));
    }
    if (j < stop) {
      const __m512i bytes =
          _mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - (stop - j)), observed + j);
      count += __builtin_popcountll(_mm512_test_epi8_mask(bytes, bytes));
      j = stop;
    }
    count += _mm512_reduce_add_epi64(_mm512_sad_epu8(sums, _mm512_setzero_si512()));
  }
#elif defined(DVAE_VECTOR_BYTES) && defined(__x86_64__)
  const __m256i none = _mm256_setzero_si256();
  while (j + 32 <= size) {
    const int64_t begin = j, stop = min64(size - 32, j + 254 * 32);
    __m256i missing = none;
    for (; j <= stop; j += 32) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(observed + j));
      missing = _mm256_sub_epi8(missing, _mm256_cmpeq_epi8(bytes, none));
    }
    const __m256i eights = _mm256_sad_epu8(missing, none);
    const __m128i two =
        _mm_add_epi64(_mm256_castsi256_si128(eights), _mm256_extracti128_si256(eights, 1));
    count += j - begin - _mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
  }
#endif
  for (; j < size; ++j) count += observed[j] != 0;
  return count;
}
