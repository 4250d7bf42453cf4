// Standard normal prior p(z), diagonal normal q(z|x̃) = N(mean, exp(log_var)), per element.
#pragma once

#include "math.h"

DVAE_BEGIN_CORE

struct DiagonalNormal {
  // log p(z) − log q(z) = ½ (ε² − z² + log_var) at z = mean + σ ε; the two ½ log 2π cancel.
  template <class A>
  DVAE_HD static A log_ratio(A noise, A z, A log_var) {
    return A(0.5) * (noise * noise - z * z + log_var);
  }
  // Gradients of z and log_ratio, with δ = grad_z − grad_r z: mean += δ,
  // log_var += ½ (δ σ ε + grad_r).
  template <class A>
  DVAE_HD static void accumulate_gradient(A grad_z, A grad_r, A z, A scaled_noise, A& mean,
                                          A& log_var) {
    const A delta = grad_z - grad_r * z;
    mean = mean + delta;
    log_var = log_var + A(0.5) * (delta * scaled_noise + grad_r);
  }

  // The same ratio for a z from elsewhere: ½ ((z − mean)² / var − z² + log_var).
  template <class A>
  DVAE_HD static A log_ratio_at(A z, A mean, A inverse_var, A log_var) {
    const A diff = z - mean;
    return A(0.5) * (diff * diff * inverse_var - z * z + log_var);
  }
  // u = (z − mean)/var: returns ∂z = g (u − z), adds ∂mean = −g u and ∂log_var = ½ g (1 − u² var).
  template <class A>
  DVAE_HD static A log_ratio_at_gradient(A g, A z, A mean, A inverse_var, A& d_mean, A& d_log_var) {
    const A diff = z - mean;
    const A u = diff * inverse_var;
    d_mean = d_mean - g * u;
    d_log_var = d_log_var + A(0.5) * (g * (A(1) - u * diff));
    return g * (u - z);
  }
};

DVAE_END_CORE
