// The decoder's last linear layer and its likelihood, in row tiles that stay in the second-level
// cache: the layer's output (N, K, D) is never held. Matrix products are torch's, with its switches
// for TF32 and reduced precision.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "likelihood.h"
#include "operators.h"

namespace dvae::glue {
namespace {

// Rows of a tile: its output (rows × D) takes a third of the second-level cache, so that the
// kernel finds there what the matrix product wrote, and has rows enough for both to run at full
// speed. Not measured yet.
int64_t tile_rows(const Tensor& like, int64_t size) {
  int cache = 0;
  if (cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, like.get_device_index()) !=
      cudaSuccess) {
    cache = 0;
  }
  const int64_t row = std::max<int64_t>(1, size * static_cast<int64_t>(like.element_size()));
  return std::max<int64_t>(cache / 3 / row, 1024);
}

// A (rows, columns) view of memory that someone else keeps.
Tensor matrix(const Tensor& like, const void* data, int64_t rows, int64_t columns,
              int64_t row_stride, int64_t column_stride) {
  const int64_t sizes[] = {rows, columns};
  const int64_t strides[] = {row_stride, column_stride};
  int32_t dtype = 0, device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(const_cast<void*>(data), 2, sizes,
                                                            strides, 0, dtype, device_type,
                                                            like.get_device_index(), &handle));
  return Tensor(handle);
}

void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
}

struct LinearDecoder {
  OnDevice device;
  LikelihoodKind likelihood;
  DType dtype;
  Tensor hidden, weight, x;
  std::optional<Tensor> bias;
  ScaleOnDevice scale;
  int64_t inputs, rows;
  size_t element;
  cuda::LogWeights p{};

  LinearDecoder(const Tensor& hidden_in, const Tensor& weight_in,
                const std::optional<Tensor>& bias_in, const std::optional<Tensor>& scale_in,
                const Tensor& x_in, const std::string& likelihood_in)
      : device(hidden_in),
        likelihood(likelihood_kind(likelihood_in)),
        dtype(dtype_of(hidden_in, "hidden")),
        hidden(packed(hidden_in)),
        weight(packed(weight_in)),
        x(packed(x_in)),
        scale(scale_in, likelihood, hidden_in, weight_in.dim() > 0 ? weight_in.sizes()[0] : 0) {
    check_shape(hidden, "hidden", {-1, -1, -1});
    inputs = hidden.sizes()[2];
    check_shape(weight, "weight", {-1, inputs});
    check_dtype(weight, "weight", hidden.scalar_type());
    check_device(weight, "weight", hidden);
    check_not_full(scale.kind, scale_in);
    p.rows = hidden.sizes()[0];
    p.samples = hidden.sizes()[1];
    p.size = weight.sizes()[0];
    p.multiplier = 1;
    rows = p.rows * p.samples;
    element = hidden.element_size();
    if (bias_in) {
      check_shape(*bias_in, "bias", {p.size});
      check_dtype(*bias_in, "bias", hidden.scalar_type());
      check_device(*bias_in, "bias", hidden);
      bias = packed(*bias_in);
      p.bias = bias->const_data_ptr();
    }
    set_x(p, x, hidden, p.rows);
    scale.fill(p, dtype, device);
  }

  // Calls body(hidden rows, output tile) for each tile, with hidden · Wᵀ in the tile and its rows
  // in p.
  template <class F>
  void for_tiles(const F& body) {
    const int64_t tile = std::min(rows, tile_rows(hidden, p.size));
    if (tile == 0) return;
    const Tensor buffer = empty(hidden, {tile, p.size}, hidden.scalar_type());
    const Tensor transposed = matrix(weight, weight.const_data_ptr(), inputs, p.size, 1, inputs);
    const char* base = static_cast<const char*>(hidden.const_data_ptr());
    p.params = buffer.const_data_ptr();
    for (int64_t begin = 0; begin < rows; begin += tile) {
      p.begin = p.first_row = begin;
      p.end = std::min(rows, begin + tile);
      const int64_t height = p.end - begin;
      const Tensor in = matrix(hidden, base + static_cast<size_t>(begin * inputs) * element, height,
                               inputs, inputs, 1);
      const Tensor out = matrix(buffer, buffer.const_data_ptr(), height, p.size, p.size, 1);
      multiply(out, in, transposed);
      body(in, out);
    }
  }
};

}  // namespace

Tensor linear_log_weights_cuda(const Tensor& hidden, const Tensor& weight,
                               const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& scale, const Tensor& x,
                               const Tensor& log_ratio_in, const std::string& likelihood) {
  LinearDecoder d(hidden, weight, bias, scale, x, likelihood);
  check_rows(log_ratio_in, "log_ratio", d.p, d.hidden);
  const Tensor log_ratio = packed(log_ratio_in);
  Tensor out = new_like(log_ratio);
  d.p.log_ratio = log_ratio.const_data_ptr();
  d.p.log_w = out.mutable_data_ptr();
  d.for_tiles([&](const Tensor&, const Tensor&) {
    check_launch(cuda::log_weights(d.likelihood, d.dtype, d.scale.kind, d.p, d.device.stream()),
                 "linear_log_weights");
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_log_weights_backward_cuda(
    const Tensor& grad_in, const Tensor& hidden, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& scale, const Tensor& x,
    const std::string& likelihood) {
  LinearDecoder d(hidden, weight, bias, scale, x, likelihood);
  check_rows(grad_in, "grad", d.p, d.hidden);
  const Tensor grad = packed(grad_in);
  const Tensor grad_hidden = new_like(d.hidden);
  const ScalarType sums = sum_type(hidden);
  const bool low_precision = hidden.scalar_type() != sums;
  // Σ over tiles of gradᵀ · hidden: added up by the matrix product itself, or, where its result
  // has fewer bits than a sum needs, outside.
  Tensor grad_weight = torch::stable::new_zeros(d.weight, d.weight.sizes(), sums);
  const Tensor part = low_precision ? new_like(d.weight) : grad_weight;
  // The tiles' sums of the gradients of bias and scale, made in the pass that makes the gradient.
  const int64_t tile = std::min(d.rows, tile_rows(d.hidden, d.p.size));
  const PartialSums bias_sums(d.hidden, tile, d.p.size), scale_sums(d.hidden, tile, d.p.size);
  d.p.parts = bias_sums.count;
  d.p.bias_parts = bias_sums.data();
  if (d.scale.kind == ScaleKind::kShared) d.p.scale_parts = scale_sums.data();
  d.p.grad = grad.const_data_ptr();
  char* hidden_out = static_cast<char*>(grad_hidden.mutable_data_ptr());
  const auto backward = [&] {
    check_launch(
        cuda::log_weights_backward(d.likelihood, d.dtype, d.scale.kind, d.p, d.device.stream()),
        "linear_log_weights_backward");
  };
  if (d.rows == 0) backward();  // sums of nothing
  d.for_tiles([&](const Tensor& in, const Tensor& out) {
    // The tile becomes its own gradient.
    d.p.grad_params = out.mutable_data_ptr();
    d.p.accumulate = d.p.begin > 0;
    backward();
    const int64_t height = d.p.end - d.p.begin;
    multiply(matrix(d.hidden, hidden_out + static_cast<size_t>(d.p.begin * d.inputs) * d.element,
                    height, d.inputs, d.inputs, 1),
             out, d.weight);
    const Tensor transposed = matrix(out, out.const_data_ptr(), d.p.size, height, 1, d.p.size);
    if (low_precision) {
      multiply(part, transposed, in);
      check_launch(cuda::add_to(d.dtype, grad_weight.mutable_data_ptr(), part.const_data_ptr(),
                                part.numel(), d.device.stream()),
                   "linear_log_weights_backward");
    } else {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_addmm_out(grad_weight.get(), grad_weight.get(),
                                                       transposed.get(), in.get(), 1.0, 1.0));
    }
  });
  Tensor grad_bias = empty(d.weight, {d.p.size}, d.weight.scalar_type());
  bias_sums.finish(grad_bias, d.device);
  if (low_precision) grad_weight = torch::stable::to(grad_weight, d.weight.scalar_type());
  Tensor grad_scale = empty(d.hidden, {0}, d.hidden.scalar_type());
  if (d.scale.kind == ScaleKind::kShared) {
    grad_scale = new_like(*d.scale.given);
    scale_sums.finish(grad_scale, d.device);
  }
  return {grad_hidden, grad_weight, grad_bias, grad_scale};
}

}  // namespace dvae::glue
