// The kernels of a likelihood. instantiate.cu is compiled once for each of these structs and each
// likelihood, so that they compile side by side; the build reads their names here.
#pragma once

#include "../core/likelihoods.h"
#include "kernels.h"

namespace dvae::cuda {

template <class L>
struct LogWeightsOf {
  static cudaError_t launch(DType, ScaleKind, const LogWeights&, cudaStream_t);
};

template <class L>
struct LogWeightsBackwardOf {
  static cudaError_t launch(DType, ScaleKind, const LogWeightGrads&, cudaStream_t);
};

// fits: whether one example fits in a block; if so, launched. Not for a shared scale.
template <class L>
struct IwaeOf {
  static cudaError_t launch(DType, const Iwae&, bool& fits, cudaStream_t);
};

// The same of rows with a mask, and as many kernels again: those above pay nothing for it.
template <class L>
struct MaskedLogWeightsOf {
  static cudaError_t launch(DType, ScaleKind, const LogWeights&, cudaStream_t);
};
template <class L>
struct MaskedLogWeightsBackwardOf {
  static cudaError_t launch(DType, ScaleKind, const LogWeightGrads&, cudaStream_t);
};
template <class L>
struct MaskedIwaeOf {
  static cudaError_t launch(DType, const Iwae&, bool& fits, cudaStream_t);
};

}  // namespace dvae::cuda
