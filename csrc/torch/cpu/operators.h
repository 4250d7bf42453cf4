// Operators of the CPU alone: of autoencoders of perceptrons (step.cpp), and of_rows.cpp.
#pragma once

#include "../operators.h"

namespace dvae::glue {

using Tensors = std::vector<Tensor>;

// What both are told: see reference.mlp_loss.
#define DVAE_PASS_ARGUMENTS                                                                   \
  In x_in, Name corruption, In rate, MaybeIn salt, In seed, int64_t copies, int64_t samples,  \
      int64_t first_example, const Tensors &encoder, const Tensors &decoder, Name activation, \
      Name likelihood, bool outside, bool analytic, bool drops_score, bool doubly,            \
      double kl_weight, bool bfloat16

#define DVAE_PASS_NAMES                                                                 \
  x_in, corruption, rate, salt, seed, copies, samples, first_example, encoder, decoder, \
      activation, likelihood, outside, analytic, drops_score, doubly, kl_weight, bfloat16

// Of an optimizer: see reference.adam_.
#define DVAE_ADAM_ARGUMENTS                                                                 \
  const Tensors &means, const Tensors &squares, const Tensors &steps, double learning_rate, \
      double beta1, double beta2, double epsilon, double decay, Name rule, double factor

// x (B, D) → the loss and the gradients of all layers, in the order of the layers.
std::tuple<Tensor, Tensors> mlp_loss(DVAE_PASS_ARGUMENTS);

// x (B, D) → the loss and the norm of the gradients, by which the layers and Adam's state of them
// are updated; see reference.mlp_step_.
std::tuple<Tensor, Tensor> mlp_step_inplace(DVAE_PASS_ARGUMENTS, DVAE_ADAM_ARGUMENTS);

// parameters, grads → nothing; parameters and Adam's state of them are updated; see
// reference.adam_.
void adam_inplace(const Tensors& parameters, const Tensors& grads, DVAE_ADAM_ARGUMENTS);

Tensor zero_inflated(In mean, In scale, In logits, In x, In log_ratio, MaybeIn mask);
Three zero_inflated_backward(In grad, In mean, In scale, In logits, In x, MaybeIn mask);
Tensor categorical(In logits, In x, In log_ratio, int64_t classes, MaybeIn mask);
Tensor categorical_backward(In grad, In logits, In x, int64_t classes, MaybeIn mask);

}  // namespace dvae::glue
