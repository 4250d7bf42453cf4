// A decoder of dense layers and its likelihood: each thread takes a few rows at a time through all
// layers, so that neither hidden activations nor output leave its cache, and none waits for
// another.
#pragma once

#include <vector>

#include "masked.h"
#include "products.h"
#include "rows.h"

namespace dvae::cpu {

// Contiguous, of the dtype of what comes in.
struct DenseLayer {
  const void* weight;  // (outputs, inputs)
  const void* bias;    // or null
  int64_t inputs, outputs;
};

struct LayersParams {
  DType dtype;     // float32, float64, or bfloat16 where the processor has products of it
  const void* in;  // (N, K, inputs of the first)
  std::vector<DenseLayer> layers;
  Activation between;
  LikelihoodKind likelihood;
  ScaleKind scale_kind;
  const Mask* mask;
};

// log_weights of all rows; params are what the layers make.
void log_weights_of_layers(const LayersParams&, const LogWeightParams&, const ForRows&);

}  // namespace dvae::cpu
