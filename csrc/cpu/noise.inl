// A block of noise: its words, and normals made of them.
// Part of kernels.inl.

DVAE_HD void noise_words(int64_t block, uint32_t sample, uint32_t example, uint32_t stream, Key key,
                         uint32_t* w) {
#ifdef DVAE_VECTOR_BYTES
  philox_block(static_cast<uint32_t>(block) * kLanes, sample, example, stream, key, w);
#else
  for (int i = 0; i < kLanes; ++i) {
    noise_lane(block, i, sample, example, stream, key, w[i], w[kLanes + i], w[2 * kLanes + i],
               w[3 * kLanes + i]);
  }
#endif
}

// Normals for the first n elements of a block (the rest is left as it was, or filled too).
template <class A>
DVAE_HD void noise_normals(int64_t block, uint32_t sample, uint32_t example, uint32_t stream,
                           Key key, int64_t n, A* out) {
  alignas(64) uint32_t w[kBlock];
  noise_words(block, sample, example, stream, key, w);
  for (int pair = 0; pair < kBlock && pair < n; pair += 2 * kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      normal_pair(w[pair + i], w[pair + kLanes + i], out[pair + i], out[pair + kLanes + i]);
    }
  }
}
