// Latent samples and their log-ratio, and the gradients of both.
// Part of kernels.inl.

// e^(c · log_var) of one row, kept between the row's samples while the row fits.
template <class T>
struct RowExp {
  using A = accumulate_t<T>;
  static constexpr int64_t kCapacity = 512;
  alignas(64) A value[kCapacity];
  int64_t row = -1;

  // Pointer to the 64 values from element j of `row`.
  DVAE_HD const A* get(const T* log_var, int64_t size, int64_t r, int64_t j, A c) {
    if (size <= kCapacity) {
      if (r != row) {
        for (int64_t i = 0; i < size; ++i) value[i] = exp(c * load(log_var[i]));
        row = r;
      }
      return value + j;
    }
    const int64_t n = min64(kTile, size - j);
    for (int64_t i = 0; i < n; ++i) value[i] = exp(c * load(log_var[j + i]));
    return value;
  }
};

struct LatentRow {
  int64_t row, sample;
  uint32_t example, stream;
};

DVAE_HD LatentRow latent_row(const LatentParams& p, int64_t row, int64_t sample) {
  return {row, sample, p.noise.first_example + static_cast<uint32_t>(row % p.examples),
          stream_word(kStreamLatent, static_cast<uint32_t>(row / p.examples))};
}

template <class T>
void sample_latent(const LatentParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(*p.noise.seed);
  RowExp<T> std;
  alignas(64) A noise[kBlock];
  for (int64_t r = begin; r < end; ++r) {
    const LatentRow at_row = latent_row(p, r / p.samples, r % p.samples);
    const T* mean = at<T>(p.mean, at_row.row * p.size);
    const T* log_var = at<T>(p.log_var, at_row.row * p.size);
    T* z = at<T>(p.z, r * p.size);
    alignas(64) A ratio[kLanes] = {};
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      const int64_t n = min64(kTile, p.size - j);
      const A* sigma = std.get(log_var, p.size, at_row.row, j, A(0.5));
      noise_normals(block, p.noise.first_sample + static_cast<uint32_t>(at_row.sample),
                    at_row.example, at_row.stream, key, n, noise);
      for_lanes(n, [&](int64_t i, int lane) __attribute__((always_inline)) {
        const A value = load(mean[j + i]) + sigma[i] * noise[i];
        store(z[j + i], value);
        ratio[lane] =
            ratio[lane] + DiagonalNormal::log_ratio(noise[i], value, load(log_var[j + i]));
      });
    }
    *at<A>(p.log_ratio, r) = sum_lanes(ratio);
  }
}

// A sum over samples, of a block: in two levels, for one float that has taken in thousands loses as
// much of each.
template <class A>
struct SampleSum {
  alignas(64) A part[kBlock] = {};
  alignas(64) A total[kBlock] = {};

  DVAE_HD void end_sample(int64_t k) {
    if ((k + 1) % kSumRows == 0) fold(part, total, kBlock);
  }
  template <class T>
  DVAE_HD void store_to(T* out, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) store(out[i], total[i] + part[i]);
  }
};

template <class T>
void sample_latent_backward(const LatentParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const Key key = key_from_seed(*p.noise.seed);
  RowExp<T> std;
  alignas(64) A noise[kBlock];
  alignas(64) A grad_z[kBlock] = {};
  for (int64_t row = begin; row < end; ++row) {
    const T* mean = at<T>(p.mean, row * p.size);
    const T* log_var = at<T>(p.log_var, row * p.size);
    for (int64_t j = 0, block = 0; j < p.size; j += kTile, ++block) {
      const int64_t n = min64(kTile, p.size - j);
      const A* sigma = std.get(log_var, p.size, row, j, A(0.5));
      SampleSum<A> d_mean, d_log_var;
      for (int64_t k = 0; k < p.samples; ++k) {
        const LatentRow at_row = latent_row(p, row, k);
        const int64_t r = row * p.samples + k;
        noise_normals(block, p.noise.first_sample + static_cast<uint32_t>(k), at_row.example,
                      at_row.stream, key, n, noise);
        const A grad_r = p.grad_log_ratio != nullptr ? *at<A>(p.grad_log_ratio, r) : A(0);
        if (p.grad_z != nullptr) {
          const T* g = at<T>(p.grad_z, r * p.size + j);
          for (int64_t i = 0; i < n; ++i) grad_z[i] = load(g[i]);
        }
        for (int64_t i = 0; i < n; ++i) {
          const A scaled = sigma[i] * noise[i];
          DiagonalNormal::accumulate_gradient(grad_z[i], grad_r, load(mean[j + i]) + scaled, scaled,
                                              d_mean.part[i], d_log_var.part[i]);
        }
        d_mean.end_sample(k);
        d_log_var.end_sample(k);
      }
      d_mean.store_to(at<T>(p.grad_mean, row * p.size + j), n);
      d_log_var.store_to(at<T>(p.grad_log_var, row * p.size + j), n);
    }
  }
}

template <class T>
void latent_log_ratio(const LatentParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  RowExp<T> precision;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t row = r / p.samples;
    const T* mean = at<T>(p.mean, row * p.size);
    const T* log_var = at<T>(p.log_var, row * p.size);
    const T* z = at<T>(static_cast<const void*>(p.z), r * p.size);
    alignas(64) A ratio[kLanes] = {};
    for (int64_t j = 0; j < p.size; j += kTile) {
      const int64_t n = min64(kTile, p.size - j);
      const A* inverse = precision.get(log_var, p.size, row, j, A(-1));
      for_lanes(n, [&](int64_t i, int lane) __attribute__((always_inline)) {
        ratio[lane] = ratio[lane] + DiagonalNormal::log_ratio_at(load(z[j + i]), load(mean[j + i]),
                                                                 inverse[i], load(log_var[j + i]));
      });
    }
    *at<A>(p.log_ratio, r) = sum_lanes(ratio);
  }
}

template <class T>
void latent_log_ratio_backward(const LatentParams& p, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  RowExp<T> precision;
  for (int64_t row = begin; row < end; ++row) {
    const T* mean = at<T>(p.mean, row * p.size);
    const T* log_var = at<T>(p.log_var, row * p.size);
    for (int64_t j = 0; j < p.size; j += kTile) {
      const int64_t n = min64(kTile, p.size - j);
      const A* inverse = precision.get(log_var, p.size, row, j, A(-1));
      SampleSum<A> d_mean, d_log_var;
      for (int64_t k = 0; k < p.samples; ++k) {
        const int64_t r = row * p.samples + k;
        const A g = *at<A>(p.grad_log_ratio, r);
        const T* z = at<T>(static_cast<const void*>(p.z), r * p.size + j);
        T* out = at<T>(p.grad_z_out, r * p.size + j);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) {
          store(out[i],
                DiagonalNormal::log_ratio_at_gradient(g, load(z[i]), load(mean[j + i]), inverse[i],
                                                      d_mean.part[i], d_log_var.part[i]));
        }
        d_mean.end_sample(k);
        d_log_var.end_sample(k);
      }
      d_mean.store_to(at<T>(p.grad_mean, row * p.size + j), n);
      d_log_var.store_to(at<T>(p.grad_log_var, row * p.size + j), n);
    }
  }
}
