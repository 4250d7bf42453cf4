// Gradients of sample_latent and latent_log_ratio.
//
// Bytes an element of z: sizeof(T) of grad_z (sampled; the noise is made again), 2 · sizeof(T) of z
// and its gradient (given), and 4/K · sizeof(T) for the row's own tensors.
// Registers (sm_90a, float32): 64.
#include "latent_gradient.cuh"

namespace dvae::cuda {
namespace {

// sample_latent's row: gradients of z and of log_ratio, or one of them, and the noise again.
template <class T>
struct SampledRow {
  using A = accumulate_t<T>;
  static constexpr A kPower = kLatentPower<A, true>;
  int64_t row;
  LatentNoise noise;

  DVAE_DEVICE SampledRow(const LatentParams& p, int64_t row_in)
      : row(row_in), noise(latent_noise(p, row_in)) {}

  DVAE_DEVICE void add(const LatentParams& p, const LatentUnit& unit, const LatentElements<T>& e,
                       int64_t k, LatentGradient<A>& sum) const {
    const int64_t r = row * p.samples + k;
    const A grad_r = p.grad_log_ratio != nullptr ? *at<A>(p.grad_log_ratio, r) : A(0);
    A n[kGroups][1];
    noise.normals(unit, k, p.size, n);
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t j = unit.element(g);
      if (j >= p.size) continue;
      const A grad_z = p.grad_z != nullptr ? load(*at<T>(p.grad_z, r * p.size + j)) : A(0);
      const A scaled = e.factor[g] * n[g][0];
      DiagonalNormal::accumulate_gradient(grad_z, grad_r, e.mean[g] + scaled, scaled, sum.mean[g],
                                          sum.log_var[g]);
    }
  }
};

// latent_log_ratio's row, and the gradient of z on the way.
template <class T>
struct GivenRow {
  using A = accumulate_t<T>;
  static constexpr A kPower = kLatentPower<A, false>;
  int64_t row;

  DVAE_DEVICE GivenRow(const LatentParams&, int64_t row_in) : row(row_in) {}

  DVAE_DEVICE void add(const LatentParams& p, const LatentUnit& unit, const LatentElements<T>& e,
                       int64_t k, LatentGradient<A>& sum) const {
    const int64_t r = row * p.samples + k;
    const A grad_r = *at<A>(p.grad_log_ratio, r);
    DVAE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const int64_t j = unit.element(g);
      if (j >= p.size) continue;
      const A z = load(*at<T>(static_cast<const void*>(p.z), r * p.size + j));
      store(*at<T>(p.grad_z_out, r * p.size + j),
            DiagonalNormal::log_ratio_at_gradient(grad_r, z, e.mean[g], e.factor[g], sum.mean[g],
                                                  sum.log_var[g]));
    }
  }
};

}  // namespace

cudaError_t sample_latent_backward(DType dtype, const LatentParams& p, cudaStream_t stream) {
  return run_latent_backward<SampledRow>(dtype, p, p.copies * p.examples, stream);
}

cudaError_t latent_log_ratio_backward(DType dtype, const LatentParams& p, cudaStream_t stream) {
  return run_latent_backward<GivenRow>(dtype, p, p.copies * p.examples, stream);
}

}  // namespace dvae::cuda
