// A likelihood of counts that are zeroed now and then.
#pragma once

#include "math.h"

DVAE_BEGIN_CORE

// Counts of a likelihood with log p(x) = `value`, of which each is zeroed with probability π =
// σ(l): log (1 − π) p(x), and log (π + (1 − π) p(0)) of a 0.
template <class A>
struct ZeroInflated {
  A e, log_sum, zeroed, kept;  // e^−|l|, log (1 + e); log π and log (1 − π) p(x), each + log_sum

  DVAE_HD ZeroInflated(A value, A logit)
      : e(exp_nonpositive(-abs(logit))),
        log_sum(log1p_unit(e)),
        zeroed(logit < A(0) ? logit : A(0)),
        kept((logit > A(0) ? -logit : A(0)) + value) {}
  // How much more likely a 0 is that was zeroed; 0 where neither may be.
  DVAE_HD A odds() const {
    const A d = zeroed - kept;
    return zeroed == kept ? A(0) : d;
  }
  DVAE_HD A log_prob(A x) const {
    const A larger = zeroed > kept ? zeroed : kept;
    const A either = larger + log1p_unit(exp_nonpositive(-abs(odds())));
    // A NaN of the value is in `kept` alone, and one of the logit in the sum.
    return (x == A(0) ? either : kept) - log_sum;
  }
  // What part of a 0's probability is the likelihood's: its derivative counts for as much.
  DVAE_HD A share(A x) const { return x == A(0) ? sigmoid(-odds()) : A(1); }
  // d log p / d l
  DVAE_HD A derivative(A logit, A x) const {
    return (x == A(0) ? sigmoid(odds()) : A(0)) - sigmoid_from(logit, e);
  }
};

DVAE_END_CORE
