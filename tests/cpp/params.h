// What kernels are told, but for where to write: inputs and sizes, of one call each.
#pragma once

#include "cpu/kernels.h"

namespace dvae::test {

inline constexpr int64_t kSeed = -1234567890123456789;
constexpr NoiseParams kNoise = {&kSeed, 1000, 7};

template <class P>
P sized(int64_t examples, int64_t samples, int64_t size) {
  P p{};
  p.examples = examples;
  p.samples = samples;
  p.size = size;
  return p;
}

// Of a kernel that reads mean and log_var.
template <class P>
P posterior_params(const void* mean, const void* log_var, int64_t examples, int64_t samples,
                   int64_t size) {
  auto p = sized<P>(examples, samples, size);
  p.mean = mean;
  p.log_var = log_var;
  return p;
}

inline LatentParams latent_params(const void* mean, const void* log_var, int64_t copies,
                                  int64_t examples, int64_t samples, int64_t size) {
  auto p = posterior_params<LatentParams>(mean, log_var, examples, samples, size);
  p.copies = copies;
  p.noise = kNoise;
  return p;
}

inline MixtureParams mixture_params(const void* z, const void* mean, const void* log_var,
                                    int64_t components, int64_t examples, int64_t samples,
                                    int64_t size) {
  auto p = posterior_params<MixtureParams>(mean, log_var, examples, samples, size);
  p.z = z;
  p.components = components;
  return p;
}

// Of a kernel that reads params (rows, samples, size) and x (examples, size).
template <class P>
P decoder_params(const void* params, const void* x, int64_t rows, int64_t examples, int64_t samples,
                 int64_t size) {
  auto p = sized<P>(examples, samples, size);
  p.params = params;
  p.x = x;
  p.rows = rows;
  return p;
}

}  // namespace dvae::test
