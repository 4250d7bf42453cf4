// Several consecutive elements in one access of 16 bytes, the widest there is, and how a team of
// threads shares out a row.
#pragma once

#include <type_traits>

#include "../core/half.h"
#include "device.cuh"

namespace dvae::cuda {

// Elements of T in 16 bytes.
template <class T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

// V elements in registers. 16-bit ones stay two to a register until they are used.
template <class T, int V, bool kPairs = sizeof(T) == 2 && V % 2 == 0>
struct Pack {
  T v[V];

  DVAE_DEVICE T get(int i) const { return v[i]; }
  DVAE_DEVICE void set(int i, T to) { v[i] = to; }
};
template <class T, int V>
struct Pack<T, V, true> {
  uint32_t v[V / 2];

  DVAE_DEVICE T get(int i) const { return T{static_cast<uint16_t>(v[i / 2] >> i % 2 * 16)}; }
  // In order of i.
  DVAE_DEVICE void set(int i, T to) {
    v[i / 2] = i % 2 == 0 ? uint32_t{to.bits} : v[i / 2] | uint32_t{to.bits} << 16;
  }
};

// The i-th element from its accumulation type, in order of i. Two of 16 bits are converted at once:
// the first of them waits as it is in the place of both.
template <class T, int V, bool kPairs>
DVAE_DEVICE void set(Pack<T, V, kPairs>& pack, int i, accumulate_t<T> value) {
  if constexpr (kPairs) {
    uint32_t& both = pack.v[i / 2];
    both = i % 2 == 0 ? bit_cast<uint32_t>(value) : store_pair<T>(bit_cast<float>(both), value);
  } else {
    store(pack.v[i], value);
  }
}

// The widest access that reads so many bytes in whole ones.
template <int kBytes>
using WordOf =
    std::conditional_t<kBytes % 16 == 0, uint4,
                       std::conditional_t<kBytes % 8 == 0, uint2,
                                          std::conditional_t<kBytes % 4 == 0, uint32_t, uint16_t>>>;

// A whole pack from an address that is a multiple of 16 bytes, or of its size if that is less.
template <class T, int V>
DVAE_DEVICE Pack<T, V> load_pack(const T* from) {
  Pack<T, V> to;
  if constexpr (V == 1) {
    to.v[0] = from[0];
  } else {
    using Word = WordOf<sizeof(to)>;
    constexpr int kWords = sizeof(to) / sizeof(Word);
    static_assert(sizeof(to) == V * sizeof(T) && sizeof(to) == kWords * sizeof(Word));
    Word words[kWords];
    DVAE_UNROLL
    for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const Word*>(from)[i];
    __builtin_memcpy(&to, words, sizeof(to));
  }
  return to;
}

// kGlobal: to global memory, for sure in one instruction a word, which nvcc otherwise may split.
template <class T, int V, bool kGlobal = false>
DVAE_DEVICE void store_pack(T* to, const Pack<T, V>& from) {
  if constexpr (V == 1) {
    to[0] = from.v[0];
  } else {
    using Word = WordOf<sizeof(from)>;
    constexpr int kWords = sizeof(from) / sizeof(Word);
    Word words[kWords];
    __builtin_memcpy(words, &from, sizeof(from));
    DVAE_UNROLL
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kGlobal) {
        __stwb(reinterpret_cast<Word*>(to) + i, words[i]);
      } else {
        reinterpret_cast<Word*>(to)[i] = words[i];
      }
    }
  }
}

// The columns of a row that one of kTeam threads takes: in steps of kTeam · V, V consecutive ones
// (kVector: row starts and sizes are multiples of V and aligned), or every kTeam-th.
template <bool kVector_, int V_, int kTeam>
struct Columns {
  static constexpr bool kVector = kVector_;
  static constexpr int V = V_;
  static constexpr int64_t kStep = int64_t{V} * kTeam;

  // Of the thread's first step; the next are kStep further.
  static DVAE_DEVICE int64_t first(int rank) { return kVector ? rank * V : rank; }
  static DVAE_DEVICE int64_t column(int64_t base, int i) {
    return base + (kVector ? i : i * kTeam);
  }
  // Whether the i-th column of a step that begins before `end` does too.
  static DVAE_DEVICE bool has(int64_t base, int i, int64_t end) {
    return kVector || column(base, i) < end;
  }

  template <class T>
  using Held = Pack<T, V, kVector && sizeof(T) == 2 && V % 2 == 0>;

  template <class T>
  static DVAE_DEVICE Held<T> load(const T* row, int64_t base, int64_t end) {
    if constexpr (kVector) {
      return load_pack<T, V>(row + base);
    } else {
      Held<T> to;
      DVAE_UNROLL
      for (int i = 0; i < V; ++i) to.v[i] = has(base, i, end) ? row[column(base, i)] : T{};
      return to;
    }
  }
  template <class T>
  static DVAE_DEVICE void store(T* row, int64_t base, int64_t end, const Held<T>& from) {
    if constexpr (kVector) {
      store_pack<T, V>(row + base, from);
    } else {
      DVAE_UNROLL
      for (int i = 0; i < V; ++i) {
        if (has(base, i, end)) row[column(base, i)] = from.v[i];
      }
    }
  }
};

// Columns for rows of T: 16 bytes' worth an access, or four accesses of one.
template <class T, bool kVector, int kTeam>
using ColumnsOf = Columns<kVector, kVector ? kPack<T> : 4, kTeam>;

}  // namespace dvae::cuda
