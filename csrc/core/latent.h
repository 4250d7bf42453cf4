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

  // −KL(q(z|x̃) || p(z)) = −½ (mean² + var − 1 − log_var), and its gradient times g, added.
  template <class A>
  DVAE_HD static A minus_divergence(A mean, A log_var) {
    return A(-0.5) * (mean * mean + expm1(log_var) - log_var);
  }
  template <class A>
  DVAE_HD static void add_divergence_gradient(A g, A mean, A log_var, A& d_mean, A& d_log_var) {
    d_mean = d_mean - g * mean;
    d_log_var = d_log_var - A(0.5) * g * expm1(log_var);
  }

  // A mixture 1/M Σ_m q_m has the ratio −logmeanexp_m (−r_m), where r_m is a component's: by its
  // ε = (z − mean)/σ, ½ (Σ ε² + Σ log_var − Σ z²). Sums over dimensions of each come first, since
  // Σ log_var serves all z, and Σ z² all components.
  template <class A>
  DVAE_HD static A standardise(A z, A mean, A inverse_std) {
    return (z - mean) * inverse_std;
  }
  template <class A>
  DVAE_HD static A log_ratio_of_sums(A noise_squares, A log_var, A z_squares) {
    return A(0.5) * (noise_squares + log_var - z_squares);
  }
  // Its gradient is the components', weighted by e^(−r_m) / Σ e^(−r): with g the upstream gradient
  // times that weight, ∂z = Σ_m g ε/σ − z Σ_m g. Returns g ε/σ; adds g ε and g ε² to a component's
  // sums over samples,
  template <class A>
  DVAE_HD static A accumulate_component(A g, A z, A mean, A inverse_std, A& noise, A& squares) {
    const A e = standardise(z, mean, inverse_std);
    const A weighted = g * e;
    noise = noise + weighted;
    squares = squares + weighted * e;
    return weighted * inverse_std;
  }
  // of which, with that of g, ∂mean = −Σ g ε/σ and ∂log_var = ½ (Σ g − Σ g ε²) are made. Where no
  // weight is above 0, 1/σ = inf must not make NaN.
  template <class A>
  DVAE_HD static A component_mean_gradient(A noise, A inverse_std) {
    return noise == A(0) ? A(0) : -noise * inverse_std;
  }
  template <class A>
  DVAE_HD static A component_log_var_gradient(A g, A squares) {
    return A(0.5) * (g - squares);
  }
};

DVAE_END_CORE
