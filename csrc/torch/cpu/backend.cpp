// Launching on the CPU: kernels over ranges of rows, shared out among torch's threads.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <cmath>

#include "../../core/logsumexp.h"
#include "../../cpu/iwae.h"
#include "../../cpu/layers.h"
#include "../../cpu/scale.h"
#include "rows.h"

namespace dvae::glue {
namespace {

int at(DType dtype) { return static_cast<int>(dtype); }

// A kernel of (params, begin, end) over rows of `row_size` elements.
template <class Kernel, class Params>
void run(Kernel kernel, const Params& p, int64_t rows, int64_t row_size) {
  for_rows(rows, row_size, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

void write_sums(const std::vector<double>& sums, int64_t size, In to) {
  cpu::write_sums(sums, size, dtype_of(to, "sums"), to.mutable_data_ptr(), to.numel() != 1);
}

// Leaves a shared scale's gradient in grad_scale.
void write_scale_gradient(const Decoder& d, const std::vector<double>& sums, In grad_scale) {
  if (d.scale_kind == ScaleKind::kShared) write_sums(sums, d.p.size, grad_scale);
}

}  // namespace

const cpu::Mask* mask_of(const Decoder& d) {
  const auto* mask = static_cast<const cpu::Mask*>(d.mask_layout.get());
  return mask == nullptr || mask->all ? nullptr : mask;
}

void over_rows_with_scale(const Decoder& d, int64_t rows, int64_t row_size, In grad_scale,
                          const std::function<void(double*, int64_t, int64_t)>& kernel) {
  std::vector<double> sums;
  cpu::add_scale_over(share, d.scale_kind, rows, row_size, d.p.size, sums, kernel);
  write_scale_gradient(d, sums, grad_scale);
}

namespace {

class GradientOnCpu final : public Gradient {
 public:
  GradientOnCpu(const Decoder& d, bool of_bias)
      : d_(d),
        bias_(static_cast<size_t>(of_bias ? round_up_to_block(d.p.size) : 0)),
        scale_(static_cast<size_t>(d.scale_kind == ScaleKind::kShared ? d.p.size : 0)) {}

  void add(const LogWeightGradParams& p, int64_t begin, int64_t end) override {
    cpu::add_scale_over(share, d_.scale_kind, end - begin, p.size, p.size, scale_,
                        [&](double* sums, int64_t first, int64_t last) {
                          cpu::log_weights_backward(mask_of(d_), d_.likelihood, d_.dtype, p,
                                                    d_.scale_kind, sums, begin + first,
                                                    begin + last);
                        });
    cpu::add_columns(share, d_.dtype, p.grad_params, end - begin, p.size, bias_);
  }
  void finish(const Tensor* grad_bias, In grad_scale) override {
    if (grad_bias != nullptr) write_sums(bias_, d_.p.size, *grad_bias);
    write_scale_gradient(d_, scale_, grad_scale);
  }

 private:
  const Decoder& d_;
  std::vector<double> bias_, scale_;
};

class Cpu final : public Backend {
  void corrupt(In, DType t, const CorruptParams& p) const override {
    const cpu::CorruptionTables tables(t, p);
    run(cpu::kernels().corrupt[at(t)], tables.params, p.copies * p.examples, p.size);
  }
  void corrupt_backward(In, DType t, const CorruptParams& p) const override {
    const cpu::CorruptionTables tables(t, p);
    run(cpu::kernels().corrupt_backward[at(t)], tables.params, p.examples, p.size * p.copies);
  }
  void corrupt_backward_std(In, DType t, const CorruptParams& p, In grad_std) const override {
    const cpu::CorruptionTables tables(t, p);
    std::vector<double> sums(static_cast<size_t>(round_up_to_block(p.size)));
    const auto kernel = cpu::kernels().corrupt_backward_std[at(t)];
    for_rows(static_cast<int64_t>(sums.size()) / kBlock, p.copies * p.examples * kBlock,
             [&](int64_t begin, int64_t end) { kernel(tables.params, sums.data(), begin, end); });
    write_sums(sums, p.size, grad_std);
  }

// Of most operators the kernel is all there is: over rows of `row` elements each.
#define DVAE_OVER_ROWS(op, Params, rows, row)                   \
  void op(In, DType t, const Params& p) const override {        \
    run(cpu::kernels().op[at(t)], p, p.examples * (rows), row); \
  }
  // A normal costs several times what a mask bit does, and a block of them is always drawn whole.
  DVAE_OVER_ROWS(sample_latent, LatentParams, (p.copies * p.samples), 4 * round_up_to_block(p.size))
  DVAE_OVER_ROWS(sample_latent_backward, LatentParams, p.copies,
                 4 * p.samples * round_up_to_block(p.size))
  DVAE_OVER_ROWS(latent_log_ratio, LatentParams, p.samples, p.size)
  DVAE_OVER_ROWS(latent_log_ratio_backward, LatentParams, 1, (p.samples * p.size))
  // Few dimensions take as long as a block of them.
  DVAE_OVER_ROWS(mixture_log_ratio, MixtureParams, p.samples,
                 (p.components * round_up_to_block(p.size)))
  DVAE_OVER_ROWS(mixture_log_ratio_backward, MixtureParams, 1,
                 (p.samples * p.components * round_up_to_block(p.size)))
#undef DVAE_OVER_ROWS

  void lay_out_scale(Decoder& d) const override {
    d.scale_layout = std::make_shared<cpu::ScaleTable>(
        d.likelihood, d.dtype, dtype_of(*d.scale, "scale"), d.scale->const_data_ptr(),
        d.scale->numel() == 1, d.mask.has_value(), d.p);
  }
  void lay_out_mask(Decoder& d) const override {
    const auto* scale = static_cast<const cpu::ScaleTable*>(d.scale_layout.get());
    d.mask_layout = std::make_shared<cpu::Mask>(
        static_cast<const uint8_t*>(d.mask->const_data_ptr()), d.mask->sizes()[0], d.p.size,
        scale != nullptr ? scale->constants : nullptr);
  }
  void log_weights(const Decoder& d, const LogWeightParams& p, int64_t begin,
                   int64_t end) const override {
    for_rows(end - begin, p.size, [&](int64_t first, int64_t last) {
      cpu::log_weights(mask_of(d), d.likelihood, d.dtype, p, d.scale_kind, begin + first,
                       begin + last);
    });
  }
  std::unique_ptr<Gradient> gradient(const Decoder& d, int64_t, bool of_bias) const override {
    return std::make_unique<GradientOnCpu>(d, of_bias);
  }
  void iwae(const Decoder& d, const IwaeParams& p, In grad_scale) const override {
    std::vector<double> sums;
    cpu::iwae(mask_of(d), d.likelihood, d.dtype, p, d.scale_kind, torch::stable::get_num_threads(),
              share, sums);
    write_scale_gradient(d, sums, grad_scale);
  }

  void multiply(In out, In a, In b) const override {
    TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
  }
  void add_product(In out, In to, In a, In b) const override {
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cpu_addmm_out(out.get(), to.get(), a.get(), b.get(), 1.0, 1.0));
  }
  void add_to(In total, In part) const override {
    float* to = static_cast<float*>(total.mutable_data_ptr());
    with_data(part, [&](const auto* from) {
      for_rows(total.numel(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] += static_cast<float>(load(from[i]));
      });
    });
  }
  // The output takes about 3 MB, which a last-level cache keeps, and has rows enough for the matrix
  // product to run at full speed.
  int64_t tile_rows(In on, int64_t size) const override {
    constexpr int64_t kTileBytes = 3 << 20;
    const int64_t row = std::max<int64_t>(1, size * static_cast<int64_t>(on.element_size()));
    return std::clamp<int64_t>(kTileBytes / row, 64, 4096);
  }
  // Of float16 torch's own products are taken, which some processors have instructions for;
  // bfloat16 is float32 without such.
  bool log_weights_of_layers(const Decoder& d, const std::vector<Layer>& layers, Activation between,
                             const LogWeightParams& p) const override {
    if (d.dtype == DType::kFloat16) return false;
    const bool wide = d.dtype == DType::kBFloat16 && cpu::bf16_products() == nullptr;
    std::vector<Tensor> kept;
    const auto data_of = [&](In t) {
      kept.push_back(wide ? torch::stable::to(t, ScalarType::Float) : t);
      return kept.back().const_data_ptr();
    };
    cpu::LayersParams of{wide ? DType::kFloat32 : d.dtype,
                         data_of(d.in),
                         {},
                         between,
                         d.likelihood,
                         d.scale_kind,
                         mask_of(d)};
    for (const Layer& layer : layers) {
      of.layers.push_back({data_of(layer.weight), layer.bias ? data_of(*layer.bias) : nullptr,
                           layer.weight.sizes()[1], layer.weight.sizes()[0]});
    }
    cpu::log_weights_of_layers(of, p, share);
    return true;
  }

  void softplus(In, DType t, const void* x, void* out, int64_t n) const override {
    const auto kernel = cpu::kernels().softplus[at(t)];
    for_rows(n, 1, [&](int64_t begin, int64_t end) { kernel(x, out, begin, end); });
  }
  void softplus_backward(In, DType t, const void* grad, const void* out, void* grad_x,
                         int64_t n) const override {
    const auto kernel = cpu::kernels().softplus_backward[at(t)];
    for_rows(n, 1, [&](int64_t begin, int64_t end) { kernel(grad, out, grad_x, begin, end); });
  }
  void rescale(In grad, In factor, int64_t rows) const override {
    const bool one = factor.numel() == 1;
    if (one && with_data(factor, [](const auto* f) { return load(*f) == 1; })) return;
    const int64_t items = one ? grad.numel() : rows;
    cpu::rescale(share, dtype_of(grad, "grad"), grad.mutable_data_ptr(), dtype_of(factor, "factor"),
                 factor.const_data_ptr(), one, items, items > 0 ? grad.numel() / items : 0);
  }

  void logmeanexp(In, DType t, const LogMeanExpParams& p) const override {
    run(cpu::kernels().logmeanexp[at(t)], p, p.rows, p.samples);
  }
  void logmeanexp_backward(In, DType t, const LogMeanExpParams& p) const override {
    run(cpu::kernels().logmeanexp_backward[at(t)], p, p.rows, p.samples);
  }
  void lse_update(In, DType t, const double* state, const LogMeanExpParams& p,
                  double* out) const override {
    const auto kernel = cpu::kernels().lse_update[at(t)];
    // Exponentials in double: about ten times a float's cost.
    for_rows(p.rows, 10 * p.samples, [&](int64_t begin, int64_t end) {
      kernel(state, p.log_w, p.samples, out, begin, end);
    });
  }
};

}  // namespace

const Backend& cpu_backend() {
  static const Cpu cpu;
  return cpu;
}

}  // namespace dvae::glue
