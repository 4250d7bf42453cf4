#include "log_weights_backward.cuh"

namespace dvae::cuda {

template cudaError_t log_weights_backward_of<Bernoulli>(DType, ScaleKind, const LogWeights&,
                                                        cudaStream_t);

}  // namespace dvae::cuda
