// A decoder's output, or the input of its last layers, with the likelihood's other operands.
#pragma once

#include "../../core/likelihoods.h"
#include "../operators.h"

namespace dvae::glue {

struct Decoder {
  const Backend& on;
  LikelihoodKind likelihood;
  DType dtype;
  Tensor in;  // (N, K, D), or what comes before layers: (N, K, inputs)
  Tensor x;
  Maybe scale;
  ScaleKind scale_kind;
  DecoderParams p{};  // of in only its sizes
  Maybe mask;
  // What the backend's kernels read of a shared scale and of a mask.
  std::shared_ptr<void> scale_layout, mask_layout;

  // name: what `in` is called; size: D; held: whether `in` is the output, which may have a scale an
  // element.
  Decoder(const Backend& on_in, In in_in, const char* name, int64_t size, bool held,
          MaybeIn scale_in, In x_in, Name likelihood_in, MaybeIn mask_in)
      : on(on_in),
        likelihood(likelihood_of(likelihood_in)),
        dtype(dtype_of(in_in, name)),
        in(packed(in_in)),
        x(packed(x_in)) {
    check_shape(in, name, {-1, -1, -1});
    p.rows = in.sizes()[0];
    p.samples = in.sizes()[1];
    p.size = size;
    p.examples = examples_of(x, "x", sum_type(in));
    p.x = x.const_data_ptr();
    if (mask_in) {
      mask = packed(*mask_in);
      examples_of(*mask, "mask", ScalarType::Bool);
    }
    scale_kind = kind_of(scale_in, held);
    if (scale_in) {
      scale = packed(*scale_in);
      if (scale_kind == ScaleKind::kFull) {
        p.scale = scale->const_data_ptr();
      } else {
        on.lay_out_scale(*this);
      }
    }
    if (mask) on.lay_out_mask(*this);
  }

  // A row each of (n, k), contiguous.
  Tensor rows(In t, const char* name) const {
    on.check(t, name, {p.rows, p.samples}, sum_type(in), in);
    return packed(t);
  }
  // Where the scale's gradient goes; of no elements if there is none.
  Tensor scale_gradient() const {
    return scale ? new_like(*scale) : empty(in, {0}, in.scalar_type());
  }
  void* full_only(In grad_scale) const {
    return scale_kind == ScaleKind::kFull ? grad_scale.mutable_data_ptr() : nullptr;
  }

 private:
  // Of a tensor (examples, D), whose row n % examples is row n's.
  int64_t examples_of(In t, const char* name, ScalarType type) const {
    on.check(t, name, {-1, p.size}, type, in);
    const int64_t examples = t.sizes()[0];
    STD_TORCH_CHECK(examples > 0 ? p.rows % examples == 0 : p.rows == 0, name,
                    " must have a number of examples that divides the rows, ", p.rows, ", got ",
                    examples);
    return examples;
  }
  // 1 or D elements shared by all rows, or (N, K, D) of them.
  ScaleKind kind_of(MaybeIn given, bool held) const {
    const bool has = has_scale(likelihood);
    STD_TORCH_CHECK(given.has_value() == has, "scale must ", has ? "" : "not ",
                    "be given for the likelihood ", kLikelihoodNames[static_cast<int>(likelihood)]);
    if (!given) return ScaleKind::kNone;
    dtype_of(*given, "scale");
    on.check_device(*given, "scale", in);
    const int64_t count = given->numel();
    if (count != 1 && given->dim() == 3) {
      check_dtype(*given, "scale", in.scalar_type());
      STD_TORCH_CHECK(held, "scale must have 1 or D elements, got shape ", shape_of(*given));
      check_shape(*given, "scale", {p.rows, p.samples, p.size});
      return ScaleKind::kFull;
    }
    STD_TORCH_CHECK(count == 1 || count == p.size,
                    "scale must have 1, D or N·K·D elements, D = ", p.size, ", got shape ",
                    shape_of(*given));
    return ScaleKind::kShared;
  }
};

// Of its output itself, called `name`.
inline Decoder decoder_of_output(const Backend& on, In params, const char* name, MaybeIn scale,
                                 In x, Name likelihood, MaybeIn mask) {
  const int64_t size = params.dim() > 0 ? params.sizes()[params.dim() - 1] : 0;
  Decoder d(on, params, name, size, true, scale, x, likelihood, mask);
  d.p.params = d.in.const_data_ptr();
  return d;
}

// What makes log-weights of rows: a row's log_ratio, and where they go.
struct LogWeights {
  Tensor log_ratio, out;
  LogWeightParams p;

  LogWeights(const Decoder& d, In log_ratio_in)
      : log_ratio(d.rows(log_ratio_in, "log_ratio")),
        out(new_like(log_ratio)),
        p{d.p, log_ratio.const_data_ptr(), out.mutable_data_ptr()} {}
};

}  // namespace dvae::glue
