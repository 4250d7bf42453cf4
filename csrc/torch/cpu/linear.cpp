// The decoder's last linear layer and its likelihood, in row tiles that stay in cache: the layer's
// output (N, K, D) is never held. The products of its gradient, and of 16-bit numbers, are torch's.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>

#include "likelihood.h"
#include "mlp.h"
#include "operators.h"

namespace dvae::glue {
namespace {

// Rows of a tile: its output (rows × D) takes about 3 MB, which a last-level cache keeps, and has
// rows enough for the matrix product to run at full speed.
int64_t tile_rows(int64_t size, int64_t element_size) {
  constexpr int64_t kTileBytes = 3 << 20;
  return std::clamp<int64_t>(kTileBytes / std::max<int64_t>(1, size * element_size), 64, 4096);
}

// A (rows, columns) view of memory that someone else keeps.
Tensor matrix(const Tensor& like, const void* data, int64_t rows, int64_t columns,
              int64_t row_stride, int64_t column_stride) {
  const int64_t sizes[] = {rows, columns};
  const int64_t strides[] = {row_stride, column_stride};
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_create_tensor_from_blob(const_cast<void*>(data), 2, sizes, strides, 0, dtype,
                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

struct LinearDecoder {
  LikelihoodKind likelihood;
  DType dtype;
  Tensor hidden, weight, x;
  std::optional<Tensor> bias;
  Scale scale;
  int64_t inputs, rows;
  size_t element;
  LogWeightParams p{};

  LinearDecoder(const Tensor& hidden_in, const Tensor& weight_in,
                const std::optional<Tensor>& bias_in, const std::optional<Tensor>& scale_in,
                const Tensor& x_in, const std::string& likelihood_in)
      : likelihood(likelihood_kind(likelihood_in)),
        dtype(dtype_of(hidden_in, "hidden")),
        hidden(packed(hidden_in)),
        weight(packed(weight_in)),
        x(packed(x_in)),
        scale(scale_in, likelihood, hidden_in, weight_in.dim() > 0 ? weight_in.sizes()[0] : 0) {
    check_shape(hidden, "hidden", {-1, -1, -1});
    inputs = hidden.sizes()[2];
    check_shape(weight, "weight", {-1, inputs});
    check_dtype(weight, "weight", hidden.scalar_type());
    check_not_full(scale.kind, scale_in);
    p.rows = hidden.sizes()[0];
    p.samples = hidden.sizes()[1];
    p.size = weight.sizes()[0];
    rows = p.rows * p.samples;
    element = hidden.element_size();
    if (bias_in) {
      check_shape(*bias_in, "bias", {p.size});
      check_dtype(*bias_in, "bias", hidden.scalar_type());
      bias = packed(*bias_in);
      p.bias = bias->const_data_ptr();
    }
    Decoder::set_x(p, x, sum_type(hidden), p.rows);
    scale.fill(p, sum_type(hidden));
  }

  // Calls body(begin, end, hidden rows, output tile) for each tile, with hidden · Wᵀ in the tile.
  template <class F>
  void for_tiles(const F& body) {
    const int64_t tile = std::min(rows, tile_rows(p.size, static_cast<int64_t>(element)));
    if (tile == 0) return;
    const Tensor buffer = empty(hidden, {tile, p.size}, hidden.scalar_type());
    const Tensor transposed = matrix(weight, weight.const_data_ptr(), inputs, p.size, 1, inputs);
    const char* base = static_cast<const char*>(hidden.const_data_ptr());
    p.params = buffer.const_data_ptr();
    for (int64_t begin = 0; begin < rows; begin += tile) {
      const int64_t end = std::min(rows, begin + tile);
      const Tensor in = matrix(hidden, base + static_cast<size_t>(begin * inputs) * element,
                               end - begin, inputs, inputs, 1);
      const Tensor out = matrix(buffer, buffer.const_data_ptr(), end - begin, p.size, p.size, 1);
      multiply(out, in, transposed);
      p.first_row = begin;
      body(begin, end, in, out);
    }
  }

  void check_rows(const Tensor& t, const char* name) const {
    check_shape(t, name, {p.rows, p.samples});
    check_dtype(t, name, sum_type(hidden));
  }
};

// total += part, a float32 sum of bfloat16 or float16 products.
void accumulate(const Tensor& total, const Tensor& part) {
  float* to = static_cast<float*>(total.mutable_data_ptr());
  for_rows(total.numel(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] += static_cast<float>(read_element(part, i));
  });
}

}  // namespace

Tensor linear_log_weights_cpu(const Tensor& hidden, const Tensor& weight,
                              const std::optional<Tensor>& bias, const std::optional<Tensor>& scale,
                              const Tensor& x, const Tensor& log_ratio_in,
                              const std::string& likelihood) {
  if (hidden.scalar_type() == sum_type(hidden)) {
    return decoder_log_weights(hidden, {weight}, {bias ? &*bias : nullptr}, Activation::kNone,
                               scale, x, log_ratio_in, likelihood_kind(likelihood));
  }
  // Products of 16-bit numbers have instructions of their own on some processors, which torch uses.
  LinearDecoder d(hidden, weight, bias, scale, x, likelihood);
  d.check_rows(log_ratio_in, "log_ratio");
  const Tensor log_ratio = packed(log_ratio_in);
  Tensor out = new_like(log_ratio);
  d.p.log_ratio = log_ratio.const_data_ptr();
  d.p.log_w = out.mutable_data_ptr();
  const auto kernel =
      cpu::kernels().log_weights[static_cast<int>(d.likelihood)][static_cast<int>(d.dtype)];
  d.for_tiles([&](int64_t begin, int64_t end, const Tensor&, const Tensor&) {
    for_rows(end - begin, d.p.size, [&](int64_t first, int64_t last) {
      kernel(d.p, d.scale.kind, begin + first, begin + last);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_log_weights_backward_cpu(
    const Tensor& grad_in, const Tensor& hidden, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& scale, const Tensor& x,
    const std::string& likelihood) {
  LinearDecoder d(hidden, weight, bias, scale, x, likelihood);
  d.check_rows(grad_in, "grad");
  const Tensor grad = packed(grad_in);
  const Tensor grad_hidden = new_like(d.hidden);
  const ScalarType sums = sum_type(hidden);
  const bool low_precision = hidden.scalar_type() != sums;
  // Σ over tiles of gradᵀ · hidden: added up by the matrix product itself, or, where its result
  // has fewer bits than a sum needs, outside.
  Tensor grad_weight = torch::stable::new_zeros(d.weight, d.weight.sizes(), sums);
  const Tensor part = low_precision ? new_like(d.weight) : grad_weight;
  const int64_t padded = round_up_to_block(d.p.size);
  std::vector<double> bias_sums(static_cast<size_t>(padded));
  std::vector<double> scale_sums(static_cast<size_t>(padded));
  d.p.grad = grad.const_data_ptr();
  const cpu::Kernels& kernels = cpu::kernels();
  const auto dtype = static_cast<int>(d.dtype);
  const auto kernel = kernels.log_weights_backward[static_cast<int>(d.likelihood)][dtype];
  char* hidden_out = static_cast<char*>(grad_hidden.mutable_data_ptr());
  d.for_tiles([&](int64_t begin, int64_t end, const Tensor& in, const Tensor& tile) {
    // The tile becomes its own gradient.
    void* data = tile.mutable_data_ptr();
    d.p.grad_params = data;
    if (d.scale.kind == ScaleKind::kShared) {
      const std::vector<double> sums = sum_over_parts(
          end - begin, d.p.size, d.p.size, [&](double* sum, int64_t first, int64_t last) {
            kernel(d.p, d.scale.kind, sum, begin + first, begin + last);
          });
      for (size_t i = 0; i < sums.size(); ++i) scale_sums[i] += sums[i];
    } else {
      for_rows(end - begin, d.p.size, [&](int64_t first, int64_t last) {
        kernel(d.p, d.scale.kind, nullptr, begin + first, begin + last);
      });
    }
    for_rows(padded / kBlock, (end - begin) * kBlock, [&](int64_t first, int64_t last) {
      kernels.add_column_sums[dtype](data, end - begin, d.p.size, bias_sums.data(), first * kBlock,
                                     std::min(d.p.size, last * kBlock));
    });
    multiply(matrix(d.hidden, hidden_out + static_cast<size_t>(begin * d.inputs) * d.element,
                    end - begin, d.inputs, d.inputs, 1),
             tile, d.weight);
    const Tensor transposed = matrix(tile, data, d.p.size, end - begin, 1, d.p.size);
    if (low_precision) {
      multiply(part, transposed, in);
      accumulate(grad_weight, part);
    } else {
      TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(grad_weight.get(), grad_weight.get(),
                                                      transposed.get(), in.get(), 1.0, 1.0));
    }
  });
  Tensor grad_bias = empty(d.weight, {d.p.size}, d.weight.scalar_type());
  for (int64_t i = 0; i < d.p.size; ++i) {
    write_element(grad_bias, i, bias_sums[static_cast<size_t>(i)]);
  }
  if (low_precision) grad_weight = torch::stable::to(grad_weight, d.weight.scalar_type());
  Tensor grad_scale = d.scale.kind == ScaleKind::kShared
                          ? d.scale.reduce(scale_sums, d.p.size)
                          : empty(d.hidden, {0}, d.hidden.scalar_type());
  return {grad_hidden, grad_weight, grad_bias, grad_scale};
}

}  // namespace dvae::glue
