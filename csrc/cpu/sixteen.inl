// Rows of numbers of 16 bits, made floats and back a group at a time.
// Part of kernels.inl.

// Where a register holds a group of floats: of a loop over numbers of 16 bits and floats GCC 12
// takes as many of both as of floats fit in half of one, and is half as fast.
#if defined(DVAE_VECTOR_BYTES) && DVAE_VECTOR_BYTES == 64 && defined(__x86_64__)
template <class T>
constexpr bool kStaged = sizeof(T) == 2;

DVAE_HD __m256i sixteen(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
DVAE_HD void load_group(const BFloat16* from, float* to) {
  _mm512_store_si512(to, _mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen(from)), 16));
}
DVAE_HD void load_group(const Half* from, float* to) {
  _mm512_store_ps(to, _mm512_cvtph_ps(sixteen(from)));
}
// As store (core/half.h).
DVAE_HD void store_group(const float* from, BFloat16* to) {
  const __m512 v = _mm512_load_ps(from);
  const __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i near = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  const __m512i kept =
      _mm512_mask_or_epi32(_mm512_srli_epi32(near, 16), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q),
                           high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(kept));
}
DVAE_HD void store_group(const float* from, Half* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(_mm512_load_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
#else
template <class T>
constexpr bool kStaged = false;
template <class T>
DVAE_HD void load_group(const T*, float*) {}
template <class T>
DVAE_HD void store_group(const float*, T*) {}
#endif

// In a loop: keeps it from being vectorised, which of one that is seldom run takes the compiler as
// long as of the loop that matters.
#define DVAE_ONE_BY_ONE __asm__ volatile("")

// What is read of a row.
template <class T>
struct Read {
  using A = accumulate_t<T>;
  const T* row;
  alignas(64) A group[kStaged<T> ? kLanes : 1];

  DVAE_HD explicit Read(const T* row_in) : row(row_in) {}
  // Before elements [j, j + n) are asked for.
  DVAE_HD void take(int64_t j, int64_t n) {
    if constexpr (kStaged<T>) {
      if (n == kLanes) return load_group(row + j, group);
      for (int64_t i = 0; i < n; ++i) {
        DVAE_ONE_BY_ONE;
        group[i] = load(row[j + i]);
      }
    }
  }
  DVAE_HD A of(int64_t j, int64_t i) const {
    if constexpr (kStaged<T>) return group[i];
    return load(row[j + i]);
  }
};

// What is made of a row. Elements that are not fresh stay as they are.
template <class T>
struct Made {
  using A = accumulate_t<T>;
  T* row;
  alignas(64) A group[kStaged<T> ? kLanes : 1];

  DVAE_HD explicit Made(T* row_in) : row(row_in) {}
  DVAE_HD void put(int64_t j, int64_t i, A value, bool fresh) {
    if constexpr (kStaged<T>) {
      group[i] = value;
    } else {
      store(row[j + i], fresh ? value : load(row[j + i]));
    }
  }
  // After a group's, of which [first, n) are fresh.
  DVAE_HD void leave(int64_t j, int64_t first, int64_t n) {
    if constexpr (kStaged<T>) {
      if (n - first == kLanes) return store_group(group, row + j);
      for (int64_t i = first; i < n; ++i) {
        DVAE_ONE_BY_ONE;
        store(row[j + i], group[i]);
      }
    }
  }
};
