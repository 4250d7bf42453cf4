// Gradients of log_weights, for instantiate.cu.
//
// Bytes an element: 2 · sizeof(T), read and written (4 with a full scale). A thread keeps its
// columns and walks over rows, so x is read once an example, and sums over rows (of a bias' or a
// shared scale's gradient) are made in registers in the same pass.
// Registers (sm_90a, float32 and bfloat16 in packs): Bernoulli 72 and 71, with sums 86 and 109;
// Gaussian with sums 104 and 156, with a full scale 80 and 94.
#pragma once

#include "columns.cuh"
#include "density.cuh"
#include "likelihoods.h"

namespace dvae::cuda {

// Rows loaded before the first is used.
constexpr int kRowsAhead = 4;

template <class L, class T, ScaleKind kScale, bool kSums, bool kVector, bool kMask>
__global__ void __launch_bounds__(kThreads, 1)
    log_weights_backward_kernel(const LogWeightGrads p, const ColumnLayout layout) {
  using A = accumulate_t<T>;
  constexpr int V = kVector ? kPack<T> : 1;
  using C = Columns<kVector, V, 1>;
  using Held = typename C::template Held<T>;
  constexpr bool kFull = kScale == ScaleKind::kFull, kShared = kScale == ScaleKind::kShared;
  const ColumnThread thread(layout);
  const int64_t base = thread.column * V;
  const A multiplier = static_cast<A>(p.multiplier);
  ColumnSum<A, V> params_sum, scale_sum;

  int64_t example = 0, sample = 0;  // of the row
  [[maybe_unused]] int64_t n = 0;
  if (thread.begin < thread.end) {
    const Quotient q = divide(thread.begin, p.samples);
    n = q.quotient;
    example = divide(n, p.examples).remainder;
    sample = q.remainder;
  }
  for (int64_t row = thread.begin, added = 0; row < thread.end;) {
    const SharedElements<T, kScale, false, C, kMask> shared(example_at<T, kMask>(p, n, example),
                                                            base, p.size);
    constexpr bool kBias = kSums && L::kLight;
    Held bias{};
    if (kBias && p.bias != nullptr) bias = C::load(static_cast<const T*>(p.bias), base, p.size);
    // What the scale's derivative has in common in all of the example's rows.
    constexpr bool kData = L::kHasDataTerm && kSums && kShared;
    [[maybe_unused]] A data[kData ? V : 1];
    if constexpr (kData) {
      DVAE_UNROLL
      for (int i = 0; i < V; ++i)
        data[i] = L::data_derivative(shared.scale.get(i), shared.x.get(i));
    }
    const int64_t stop = minimum(thread.end, row + p.samples - sample);
    for (; row < stop; row += kRowsAhead) {
      Held raw[kRowsAhead], full[kFull ? kRowsAhead : 1];
      A weight[kRowsAhead];
      DVAE_UNROLL
      for (int r = 0; r < kRowsAhead; ++r) {
        if (row + r >= stop) break;
        const int64_t from = (row + r - p.first_row) * p.size;
        raw[r] = C::load(at<T>(p.params, from), base, p.size);
        if constexpr (kFull) full[r] = C::load(at<T>(p.scale, from), base, p.size);
        weight[r] = *at<A>(p.grad, row + r) * multiplier;
      }
      DVAE_UNROLL
      for (int r = 0; r < kRowsAhead; ++r) {
        if (row + r >= stop) break;
        Held out, out_scale;
        A d_param[V], d_scale[V] = {};
        DVAE_UNROLL
        for (int i = 0; i < V; ++i) {
          const A raw_param = load(raw[r].get(i));
          const A param = kBias ? raw_param + load(bias.get(i)) : raw_param;
          const A scale = L::kHasScale ? shared.scale_of(full[kFull ? r : 0].get(i), i) : A(1);
          d_param[i] = weighted_derivative<L, T, kScale>(weight[r], param, scale, shared.x.get(i),
                                                         d_scale[i]);
          if constexpr (kData)
            d_scale[i] = weight[r] == A(0) ? A(0) : d_scale[i] + weight[r] * data[i];
          // After the weight, which may be NaN.
          if (!shared.counts(i)) d_param[i] = d_scale[i] = A(0);
          set(out, i, d_param[i]);
          if constexpr (kFull) set(out_scale, i, d_scale[i]);
        }
        const int64_t to = (row + r - p.first_row) * p.size;
        C::store(at<T>(p.grad_params, to), base, p.size, out);
        if constexpr (kFull) C::store(at<T>(p.grad_scale, to), base, p.size, out_scale);
        if constexpr (kSums) params_sum.add(d_param);
        if constexpr (kSums && kShared) scale_sum.add(d_scale);
      }
      added += kRowsAhead;
      if (kSums && added >= kColumnFlush) {
        params_sum.flush();
        scale_sum.flush();
        added = 0;
      }
    }
    row = stop;
    sample = 0;
    example = example + 1 == p.examples ? 0 : example + 1;
    ++n;
  }
  if constexpr (kSums) {
    params_sum.flush();
    scale_sum.flush();
    const auto element = [&](int i) { return base + i; };
    if (p.bias_parts != nullptr) {
      write_column_sums(layout, thread, params_sum, element, p.size, p.bias_parts, p.accumulate);
    }
    if constexpr (kShared) {
      if (p.scale_parts != nullptr) {
        write_column_sums(layout, thread, scale_sum, element, p.size, p.scale_parts, p.accumulate);
      }
    }
  }
}

template <class L, class T, ScaleKind kScale, bool kSums, bool kMask>
cudaError_t launch_log_weights_backward(const LogWeightGrads& p, cudaStream_t stream) {
  Device device;
  if (const cudaError_t error = query(device)) return error;
  const int64_t rows = p.end - p.begin;
  const auto run = [&](auto kernel, int64_t V) {
    // Without sums, parts cost nothing: enough of them to be shared out evenly.
    const int64_t most = int64_t{device.multiprocessors} * 32;
    const int64_t parts = kSums ? p.parts : std::clamp<int64_t>(rows / 16, 1, most);
    const ColumnLayout l = column_layout(p.size / V, p.begin, rows, parts);
    const int64_t shared = kSums ? int64_t{l.width} * l.slices * V * 8 : 0;
    return launch(kernel, grid_of(l.blocks), kThreads, shared, stream, p, l);
  };
  const auto bases = {p.params,
                      p.x,
                      p.bias,
                      scale_rows<kScale>(p),
                      static_cast<const void*>(p.mask.seen),
                      static_cast<const void*>(p.grad_params),
                      static_cast<const void*>(p.grad_scale)};
  if (packs_fit<T>(p.size, kPack<T>, bases)) {
    return run(&log_weights_backward_kernel<L, T, kScale, kSums, true, kMask>, kPack<T>);
  }
  return run(&log_weights_backward_kernel<L, T, kScale, kSums, false, kMask>, 1);
}

template <class L, ScaleKind kScale, bool kMask>
cudaError_t log_weights_backward_scaled(DType dtype, const LogWeightGrads& p, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (kScale != ScaleKind::kFull) {
      if (p.bias != nullptr || p.bias_parts != nullptr || p.scale_parts != nullptr) {
        return launch_log_weights_backward<L, T, kScale, true, kMask>(p, stream);
      }
    }
    return launch_log_weights_backward<L, T, kScale, false, kMask>(p, stream);
  });
}

template <class L, bool kMask>
cudaError_t log_weights_backward_of(DType dtype, [[maybe_unused]] ScaleKind scale,
                                    const LogWeightGrads& p, cudaStream_t stream) {
  if constexpr (!L::kHasScale) {
    return log_weights_backward_scaled<L, ScaleKind::kNone, kMask>(dtype, p, stream);
  } else {
    return scale == ScaleKind::kFull
               ? log_weights_backward_scaled<L, ScaleKind::kFull, kMask>(dtype, p, stream)
               : log_weights_backward_scaled<L, ScaleKind::kShared, kMask>(dtype, p, stream);
  }
}

template <class L>
cudaError_t LogWeightsBackwardOf<L>::launch(DType dtype, ScaleKind scale, const LogWeightGrads& p,
                                            cudaStream_t stream) {
  return log_weights_backward_of<L, false>(dtype, scale, p, stream);
}

template <class L>
cudaError_t MaskedLogWeightsBackwardOf<L>::launch(DType dtype, ScaleKind scale,
                                                  const LogWeightGrads& p, cudaStream_t stream) {
  return log_weights_backward_of<L, true>(dtype, scale, p, stream);
}

}  // namespace dvae::cuda
