// Which elements of a row a mask leaves out, for loops over groups of kLanes.
// Part of kernels.inl.

template <class A>
using bits_t = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;

// Leaves out an element of which x is not known (likelihoods.h).
#if defined(DVAE_VECTOR_BYTES) && DVAE_VECTOR_BYTES == 64
template <class A>
struct Keep {
  bits_t<A> seen;  // or 0
  DVAE_HD A operator()(A value) const { return seen != 0 ? value : A(0); }
};
#else
// By bits: a choice takes more instructions, and another loop.
template <class A>
struct Keep {
  bits_t<A> seen;  // all ones, or 0
  DVAE_HD A operator()(A value) const { return bit_cast<A>(bit_cast<bits_t<A>>(value) & seen); }
};
#endif

// Some whole groups of a mask, bytes that are not 0 where x is known.
struct GivenMask {
  static constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const uint8_t* seen;

  DVAE_HD GivenMask(const uint8_t* given, int64_t) : seen(given) {}
};
#if defined(DVAE_VECTOR_BYTES) && DVAE_VECTOR_BYTES == 32 && defined(__x86_64__)
// Of which it takes less to make a GroupMask. Not for the lightest loops, which are done before
// what is stored here can be read.
struct PreparedMask {
  static constexpr int64_t kMost = 64 * kLanes;
  alignas(32) uint8_t seen[kMost];  // all ones, or 0

  DVAE_HD PreparedMask(const uint8_t* given, int64_t n) {
    const __m256i none = _mm256_setzero_si256(), ones = _mm256_set1_epi8(-1);
    int64_t j = 0;
#pragma GCC unroll 4
    for (; j + 32 <= n; j += 32) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(given + j));
      const __m256i missing = _mm256_cmpeq_epi8(v, none);
      _mm256_store_si256(reinterpret_cast<__m256i*>(seen + j), _mm256_xor_si256(missing, ones));
    }
    if (j < n) {
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(given + j));
      const __m128i missing = _mm_cmpeq_epi8(v, _mm256_castsi256_si128(none));
      _mm_store_si128(reinterpret_cast<__m128i*>(seen + j),
                      _mm_xor_si128(missing, _mm256_castsi256_si128(ones)));
    }
  }
};
#else
using PreparedMask = GivenMask;
#endif

// A group's mask, of bytes that are not 0 where x is known, and those of `also` too. By hand: of a
// loop over bytes and floats GCC 12 takes as many of the ones at once as of the others fit in 16
// bytes.
template <class A>
struct GroupMask {
  alignas(64) bits_t<A> seen[kLanes];

  DVAE_HD GroupMask(const GivenMask& mask, int64_t at) {
    const uint8_t* const bytes = mask.seen + at;
#if defined(DVAE_VECTOR_BYTES) && defined(__x86_64__)
    if constexpr (sizeof(A) == 4) {
#if DVAE_VECTOR_BYTES == 64
      take(load_16(bytes));
#else
      put(0, load_8(bytes));
      put(8, load_8(bytes + 8));
#endif
      return;
    }
#endif
    set(bytes, bytes, kLanes);
  }
#if defined(DVAE_VECTOR_BYTES) && DVAE_VECTOR_BYTES == 32 && defined(__x86_64__)
  DVAE_HD GroupMask(const PreparedMask& mask, int64_t at) {
    static_assert(sizeof(A) == 4);
    for (int i = 0; i < 16; i += 8) store(i, _mm256_cvtepi8_epi32(load_8(mask.seen + at + i)));
  }
#endif
  DVAE_HD GroupMask(const uint8_t* bytes, const uint8_t* also) {
#if defined(DVAE_VECTOR_BYTES) && defined(__x86_64__)
    if constexpr (sizeof(A) == 4) {
      const __m128i none = _mm_cmpeq_epi8(load_16(bytes), _mm_setzero_si128());
      take(_mm_andnot_si128(none, load_16(also)));
      return;
    }
#endif
    set(bytes, also, kLanes);
  }
  DVAE_HD GroupMask(const uint8_t* bytes, int64_t n) { set(bytes, bytes, n); }
  DVAE_HD Keep<A> keep(int64_t i) const { return {seen[i]}; }

 private:
  DVAE_HD void set(const uint8_t* bytes, const uint8_t* also, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      seen[i] = bits_t<A>{0} - static_cast<bits_t<A>>(bytes[i] != 0 && also[i] != 0);
    }
  }
#if defined(DVAE_VECTOR_BYTES) && defined(__x86_64__)
  DVAE_HD static __m128i load_16(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  DVAE_HD void take(__m128i bytes) {
#if DVAE_VECTOR_BYTES == 64
    _mm512_store_si512(seen, _mm512_cvtepu8_epi32(bytes));
#else
    put(0, bytes);
    put(8, _mm_srli_si128(bytes, 8));
#endif
  }
#if DVAE_VECTOR_BYTES != 64
  DVAE_HD static __m128i load_8(const uint8_t* p) {
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  }
  DVAE_HD void store(int at, __m256i all) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(seen + at), all);
  }
  DVAE_HD void put(int at, __m128i eight) {
    store(at, _mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(eight), _mm256_setzero_si256()));
  }
#endif
#endif
};
