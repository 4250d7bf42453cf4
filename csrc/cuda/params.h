// What a CUDA kernel is told besides core/params.h. All pointers are to device memory, the seed's
// and Σ log scale's too: nothing waits for the device, and a captured graph sees new values at each
// replay. A shared scale is one element (scale_stride = 0) or D (scale_stride = 1).
#pragma once

#include "../core/params.h"

namespace dvae::cuda {

// Which elements of x are known, (examples, D): not 0 where one is. Row n has row n % examples of
// it.
struct Mask {
  const uint8_t* seen;  // null: all are
  int64_t examples;
  const double* constants;  // (examples,) as row_constants makes them, or null: 0
};

struct LogWeights : LogWeightParams {
  int64_t begin, end;  // the rows (n, k) to work on
  Mask mask;
};

struct LogWeightGrads : LogWeightGradParams {
  int64_t begin, end;  // the rows (n, k) to work on
  // Sums over rows per dimension, (parts, D) each, of the gradients of params (a bias' gradient)
  // and of a shared scale; or null. finish_sums adds up the parts.
  double* bias_parts;
  double* scale_parts;
  int64_t parts;
  bool accumulate;  // add to the parts instead of setting them
  Mask mask;
};

struct Iwae : IwaeParams {
  double* scale_parts;  // as above, for a shared scale
  int64_t parts;
  Mask mask;
};

}  // namespace dvae::cuda
