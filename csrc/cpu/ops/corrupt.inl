// Corruption, and its gradients in x and in a standard deviation.
// Part of kernels.inl.

template <class C, class T>
void corrupt_discrete(const CorruptTables& p, int64_t begin, int64_t end) {
  const Key key = key_from_seed(*p.noise.seed);
  alignas(64) uint32_t w[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t copy = row / p.examples, example = row % p.examples;
    const T* in = at<T>(p.in, example * p.size);
    T* out = at<T>(p.out, row * p.size);
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      noise_words(block, p.noise.first_sample + static_cast<uint32_t>(copy),
                  p.noise.first_example + static_cast<uint32_t>(example), kStreamCorruption, key,
                  w);
      const int32_t* hit = p.hit + block * p.table_stride;
      const int32_t* one = p.one + block * p.table_stride;
      const auto element = [&](int64_t i) __attribute__((always_inline)) {
        store(out[j + i], C::apply(load(in[j + i]), uniform24(w[i]), hit[i], one[i]));
      };
      if (p.size - j >= kTile) {
#pragma GCC ivdep
        for (int i = 0; i < kBlock; ++i) element(i);
      } else {
#pragma GCC ivdep
        for (int64_t i = 0; i < p.size - j; ++i) element(i);
      }
    }
  }
}

template <class T>
void corrupt_gaussian(const CorruptTables& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(*p.noise.seed);
  alignas(64) A normal[kBlock];
  for (int64_t row = begin; row < end; ++row) {
    const int64_t copy = row / p.examples, example = row % p.examples;
    const T* in = at<T>(p.in, example * p.size);
    T* out = at<T>(p.out, row * p.size);
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      const int64_t n = min64(kTile, p.size - j);
      noise_normals(block, p.noise.first_sample + static_cast<uint32_t>(copy),
                    p.noise.first_example + static_cast<uint32_t>(example), kStreamCorruption, key,
                    n, normal);
      const A* std = at<A>(p.stds, block * p.table_stride);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        store(out[j + i], AdditiveGaussian::apply(load(in[j + i]), normal[i], std[i]));
      }
    }
  }
}

template <class T>
void corrupt(const CorruptTables& p, int64_t begin, int64_t end) {
  with_corruption(p.kind, [&](auto corruption) {
    using C = decltype(corruption);
    if constexpr (C::kDraws == Draws::kUniform) {
      corrupt_discrete<C, T>(p, begin, end);
    } else if constexpr (C::kDraws == Draws::kNormal) {
      corrupt_gaussian<T>(p, begin, end);
    } else {
      for (int64_t row = begin; row < end; ++row) {
        const T* in = at<T>(p.in, row % p.examples * p.size);
        T* out = at<T>(p.out, row * p.size);
        for (int64_t i = 0; i < p.size; ++i) out[i] = in[i];
      }
    }
  });
}

// Σ over copies of grad · ∂x̃/∂x; 1 where C draws no uniforms.
template <class C, class T>
void corrupt_backward_as(const CorruptTables& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(*p.noise.seed);
  alignas(64) uint32_t w[kBlock];
  alignas(64) A sum[kBlock];
  for (int64_t example = begin; example < end; ++example) {
    T* out = at<T>(p.out, example * p.size);
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      const int64_t n = min64(kTile, p.size - j);
      const int32_t* hit = p.hit + block * p.table_stride;
      fill(sum, kBlock, A(0));
      for (int64_t copy = 0; copy < p.copies; ++copy) {
        const T* grad = at<T>(p.in, (copy * p.examples + example) * p.size + j);
        if constexpr (C::kDraws == Draws::kUniform) {
          noise_words(block, p.noise.first_sample + static_cast<uint32_t>(copy),
                      p.noise.first_example + static_cast<uint32_t>(example), kStreamCorruption,
                      key, w);
          for (int64_t i = 0; i < n; ++i) {
            sum[i] = sum[i] + C::derivative(load(grad[i]), uniform24(w[i]), hit[i]);
          }
        } else {
          for (int64_t i = 0; i < n; ++i) sum[i] = sum[i] + load(grad[i]);
        }
      }
      for (int64_t i = 0; i < n; ++i) store(out[j + i], sum[i]);
    }
  }
}

template <class T>
void corrupt_backward(const CorruptTables& p, int64_t begin, int64_t end) {
  with_corruption(p.kind, [&](auto corruption) {
    using C = decltype(corruption);
    using Of = std::conditional_t<C::kDraws == Draws::kUniform, C, Identity>;
    corrupt_backward_as<Of, T>(p, begin, end);
  });
}

template <class T>
void corrupt_backward_std(const CorruptTables& p, double* out, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(*p.noise.seed);
  alignas(64) A normal[kBlock];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t j = block * kTile, n = min64(kTile, p.size - j);
    alignas(64) double sum[kBlock] = {};
    for (int64_t copy = 0; copy < p.copies; ++copy) {
      for (int64_t example = 0; example < p.examples; ++example) {
        noise_normals(block, p.noise.first_sample + static_cast<uint32_t>(copy),
                      p.noise.first_example + static_cast<uint32_t>(example), kStreamCorruption,
                      key, n, normal);
        const T* grad = at<T>(p.in, (copy * p.examples + example) * p.size + j);
        for (int64_t i = 0; i < n; ++i) {
          sum[i] = sum[i] + static_cast<double>(load(grad[i])) * static_cast<double>(normal[i]);
        }
      }
    }
    for (int i = 0; i < kBlock; ++i) out[j + i] = sum[i];
  }
}
