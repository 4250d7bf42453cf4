#include "iwae.h"

namespace dvae::cpu {

void iwae(const Mask* mask, LikelihoodKind likelihood, DType dtype, const IwaeParams& p,
          ScaleKind kind, int64_t threads, const ForRows& for_rows,
          std::vector<double>& scale_sums) {
  const int l = static_cast<int>(likelihood), t = static_cast<int>(dtype);
  if (threads > 1 && p.rows < 4 * threads && p.samples > 1 && mask == nullptr) {
    // Too few examples to share out evenly: share out their samples, a step at a time.
    const int64_t rows = p.rows * p.samples;
    for_rows(rows, 2 * p.size,
             [&](int64_t begin, int64_t end) { kernels().iwae_sweep[l][t](p, kind, begin, end); });
    kernels().iwae_normalise[t](p, 0, p.rows);
    add_scale_over(for_rows, kind, rows, p.size, p.size, scale_sums,
                   [&](double* sums, int64_t begin, int64_t end) {
                     kernels().iwae_scale[l][t](p, kind, sums, begin, end);
                   });
  } else {
    add_scale_over(for_rows, kind, p.rows, 2 * p.samples * p.size, p.size, scale_sums,
                   [&](double* sums, int64_t begin, int64_t end) {
                     iwae(mask, likelihood, dtype, p, kind, sums, begin, end);
                   });
  }
}

}  // namespace dvae::cpu
