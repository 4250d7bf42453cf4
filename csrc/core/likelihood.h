// What every likelihood's struct has.
//
// A log-density is summed over elements in two accumulators (a, b): `push` takes in an element,
// `merge` another pair, `finish` gives the sum. After kMaxPush pushes into one pair, and after
// merging no more than four such pairs, `finish` must be called.
#pragma once

#include "math.h"
#include "params.h"

DVAE_BEGIN_CORE

// What `push` is told of an element of which x may not be known: what it adds is keep(it), and 0
// then, whatever the element is.
struct KeepAll {
  template <class A>
  DVAE_HD A operator()(A value) const {
    return value;
  }
};

// What a likelihood is unless it says otherwise.
struct LikelihoodDefaults {
  // Whether its parameters are a pair (mean, scale), or one tensor.
  static constexpr bool kHasScale = false;
  // Whether row_constant is of Σ log scale where rows share their scale.
  static constexpr bool kHasLogScale = false;
  // What row_constant has of each element.
  static constexpr double kConstant = 0;
  // Whether log p has a part of x (and of a scale that rows share) alone: data_term, and its
  // derivative in that scale, data_derivative. Of one element; made once for all rows of an
  // example, as far as a kernel can, and left out of push and derivative.
  static constexpr bool kHasDataTerm = false;
  // Whether an element takes many registers: more than 128 of a CUDA thread in double.
  static constexpr bool kHeavy = false;
  static constexpr int kMaxPush = 32;  // a longer sum in one float would lose what it adds
  // Whether b is a product, whose logarithm `finish` takes, and finish_sum that of b = 0.
  static constexpr bool kProduct = false;
  // Whether push_with_derivative takes little more than push, whose bits its sums must be.
  static constexpr bool kPushDerives = false;
  // Whether an element is so little work that to leave it out by a choice soon costs less than to
  // move the others, and that to add a layer's bias to it pays; of others the product has it.
  static constexpr bool kLight = false;

  template <ScaleKind kScale, class A>
  DVAE_HD static A data_term(A, A) {
    return A(0);
  }
  // What log p of a row has besides that, given Σ log scale if kHasLogScale and the rows share
  // their scale, else 0.
  DVAE_HD static double row_constant(int64_t, double) { return 0; }
  template <class A>
  DVAE_HD static void merge(A& a, A& b, A a2, A b2) {
    a = a + a2;
    b = b + b2;
  }
};

// Of L, with one parameter, whose derivative shares nothing with its density.
template <class L>
struct DerivedApart : LikelihoodDefaults {
  template <bool kCoarse = false, class A, class K = KeepAll>
  DVAE_HD static A push_with_derivative(A& a, A& b, A param, A x, K keep = {}) {
    L::push(a, b, param, x, keep);
    return L::derivative(param, x);
  }
};

// For sums of which b is 0, or below where a parameter was that may not be: one instruction an
// element, where a choice takes two and keeps some loops scalar.
struct Least {
  template <class A, class K>
  DVAE_HD static void push(A& b, A parameter, K keep) {
    const A kept = keep(parameter);
    b = kept < b ? kept : b;
  }
  template <class A>
  DVAE_HD static A finish(A sum, A b) {
    return b < A(0) ? quiet_nan<A>() : sum;
  }
};

DVAE_END_CORE
