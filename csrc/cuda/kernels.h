// The CUDA kernels, launched on a stream. No function here waits for the device or allocates; each
// returns what the launch returned. B, N, K, M, D or Z of 0 are fine: nothing is launched, or what
// an empty sum is gets written.
//
// Sums are made in an order fixed by the sizes, the device and, where said, the number of parts: no
// atomics, so the same call gives the same bits. A row may be rounded otherwise in a larger batch,
// where log_weights shares out rows in another way.
#pragma once

#include <cuda_runtime_api.h>

#include "params.h"

namespace dvae::cuda {

cudaError_t corrupt(DType, const CorruptParams&, cudaStream_t);
cudaError_t corrupt_backward(DType, const CorruptParams&, cudaStream_t);
// std_parts (parts, D): Σ grad · noise over parts of the rows (copy, example).
cudaError_t corrupt_backward_std(DType, const CorruptParams&, double* std_parts, int64_t parts,
                                 cudaStream_t);

cudaError_t sample_latent(DType, const LatentParams&, cudaStream_t);
cudaError_t sample_latent_backward(DType, const LatentParams&, cudaStream_t);
cudaError_t latent_log_ratio(DType, const LatentParams&, cudaStream_t);
cudaError_t latent_log_ratio_backward(DType, const LatentParams&, cudaStream_t);

cudaError_t mixture_log_ratio(DType, const MixtureParams&, cudaStream_t);
cudaError_t mixture_log_ratio_backward(DType, const MixtureParams&, cudaStream_t);

// Rows [begin, end) of p.
cudaError_t log_weights(LikelihoodKind, DType, ScaleKind, const LogWeights&, cudaStream_t);
// Gradients of grad · multiplier per row; grad_params may be params. For rows of a shared scale,
// or with bias or bias_parts, sums are kept in parts.
cudaError_t log_weights_backward(LikelihoodKind, DType, ScaleKind, const LogWeightGrads&,
                                 cudaStream_t);
// The fused loss over all rows. bias is not read. A shared scale needs scale_parts.
cudaError_t iwae(LikelihoodKind, DType, ScaleKind, const Iwae&, cudaStream_t);
// Its middle step, where it takes three: bound from log_w, which becomes the normalised weights.
cudaError_t iwae_normalise(DType, const IwaeParams&, cudaStream_t);

// Parts that keep the device busy with column sums over `rows` rows of `size` elements; at least 1.
int64_t sum_parts(int64_t rows, int64_t size);
// out (T), of one element or `size`: the sums over parts, and for one element over dimensions.
cudaError_t finish_sums(DType, const double* parts, int64_t count_parts, int64_t size, void* out,
                        int64_t count, cudaStream_t);
// out: Σ_d log scale of a shared scale (A) of one element or `size`. each: null, or those
// logarithms.
cudaError_t log_scale_sum(DType, const void* scale, int64_t count, int64_t size, double* out,
                          double* each, cudaStream_t);
// out (examples,): what log p of a row of each example has besides the sum over its elements.
// log_scale: null, or log_scale_sum's; each: of `count` elements.
cudaError_t row_constants(LikelihoodKind, const Mask&, int64_t size, const double* log_scale,
                          const double* each, int64_t count, double* out, cudaStream_t);

// total (A) += part (T), n elements.
cudaError_t add_to(DType, void* total, const void* part, int64_t n, cudaStream_t);

cudaError_t logmeanexp(DType, const LogMeanExpParams&, cudaStream_t);
cudaError_t logmeanexp_backward(DType, const LogMeanExpParams&, cudaStream_t);
// state (rows, 5), log_w (rows, K) A → out (rows, 5)
cudaError_t lse_update(DType, const double* state, const void* log_w, int64_t rows, int64_t samples,
                       double* out, cudaStream_t);

// n elements: log(1 + e^x), and grad · σ(x) from out = log(1 + e^x).
cudaError_t softplus(DType, const void* x, void* out, int64_t n, cudaStream_t);
cudaError_t softplus_backward(DType, const void* grad, const void* out, void* grad_x, int64_t n,
                              cudaStream_t);

// grad (rows, size) *= factor, of one element or `rows`, read on the device.
cudaError_t rescale(DType, void* grad, DType factor_type, const void* factor, int64_t count,
                    int64_t rows, int64_t size, cudaStream_t);

}  // namespace dvae::cuda
