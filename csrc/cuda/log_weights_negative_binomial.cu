#include "log_weights.cuh"

namespace dvae::cuda {

template cudaError_t log_weights_of<NegativeBinomial>(DType, ScaleKind, const LogWeights&,
                                                      cudaStream_t);

}  // namespace dvae::cuda
