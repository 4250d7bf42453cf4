// What a CUDA kernel is told. As core/params.h, but what the CPU code reads on the host (seed,
// rates, Σ log scale) is read on the device: nothing waits for the device, and a captured graph
// sees new values at each replay. All pointers are to device memory.
#pragma once

#include "../core/params.h"

namespace dvae::cuda {

// x (B, D) → out (M, B, D); or grad (M, B, D) → out (B, D).
struct Corruption {
  const void* in;       // T
  void* out;            // T
  const float* rate;    // 1 or D elements
  const float* salt;    // 1 or D elements, or null: 0
  const void* std;      // A, of a Gaussian, instead of rate
  int64_t rate_step;    // of rate and std: 1 if there are D, 0 if one serves all
  int64_t salt_step;
  const int64_t* seed;
  uint32_t first_example, first_copy;
  int64_t copies, examples, size;
  CorruptionKind kind;
};

// noise.seed is not read.
struct Latent : LatentParams {
  const int64_t* seed;
};

// log_scale_sum of LogWeightParams is not read. scale, where it is shared: A, one element
// (scale_stride = 0) or D (scale_stride = 1).
struct LogWeights : LogWeightParams {
  const double* log_scale;  // Σ_d log scale, for a shared scale
  int64_t begin, end;       // the rows (n, k) to work on
  // Sums over rows per dimension, (parts, D) each, of the gradients of params (a bias' gradient)
  // and of a shared scale; or null. finish_sums adds up the parts.
  double* bias_parts;
  double* scale_parts;
  int64_t parts;
  bool accumulate;  // add to the parts instead of setting them
};

}  // namespace dvae::cuda
