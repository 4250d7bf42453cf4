// How the tests of formulas are made: one for each dtype of sums.
#pragma once

#include <gtest/gtest.h>

namespace dvae::test {

template <class A>
class FormulaTest : public testing::Test {
 protected:
  static constexpr double kError = sizeof(A) == 8 ? 1e-14 : 1e-6;
};
using Types = testing::Types<float, double>;

}  // namespace dvae::test
