// What a CUDA kernel is told besides core/params.h. All pointers are to device memory, the seed's
// and Σ log scale's too: nothing waits for the device, and a captured graph sees new values at each
// replay. A shared scale is one element (scale_stride = 0) or D (scale_stride = 1).
#pragma once

#include "../core/params.h"

namespace dvae::cuda {

struct LogWeights : LogWeightParams {
  int64_t begin, end;  // the rows (n, k) to work on
};

struct LogWeightGrads : LogWeightGradParams {
  int64_t begin, end;  // the rows (n, k) to work on
  double multiplier;  // of grad
  // Sums over rows per dimension, (parts, D) each, of the gradients of params (a bias' gradient)
  // and of a shared scale; or null. finish_sums adds up the parts.
  double* bias_parts;
  double* scale_parts;
  int64_t parts;
  bool accumulate;  // add to the parts instead of setting them
};

struct Iwae : IwaeParams {
  double* scale_parts;  // as above, for a shared scale
  int64_t parts;
};

}  // namespace dvae::cuda
