// Launching on CUDA: on the current stream of a tensor's device. Nothing here waits for the device.
#include "../backend.h"

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "../../cuda/kernels.h"
#include "../ops/decoder.h"

namespace dvae::glue {
namespace {

// A tensor of the CPU comes here beside one of a GPU, which is what chose this backend.
void check_cuda(In t) {
  STD_TORCH_CHECK(t.is_cuda(), "all tensors must be on one GPU, got ",
                  t.is_cpu() ? "one on the CPU" : "one on a device that is not CUDA's",
                  ", of shape ", shape_of(t));
}

// Makes the device of a tensor the current one, in its scope; work goes to its current stream.
class OnDevice {
 public:
  explicit OnDevice(In t) : guard_(index_of(t)) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  // Of a tensor of the CPU −1, for the guard and the stream an index like any other.
  static int32_t index_of(In t) {
    check_cuda(t);
    return t.get_device_index();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Calls launch(arguments…, stream) on the device of a tensor.
template <class... P, class... A>
void run(const char* op, In on, cudaError_t (*launch)(P...), const A&... arguments) {
  const OnDevice device(on);
  const cudaError_t error = launch(arguments..., device.stream());
  // Taken out of the runtime, where torch would find it at its next look and blame another.
  if (error != cudaSuccess) (void)cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "dvae_fast::", op, ": ", cudaGetErrorString(error));
}

struct ScaleOnDevice {
  Tensor data;
  Maybe log_scale;  // Σ log scale, float64; with a mask, then each logarithm

  explicit ScaleOnDevice(Decoder& d) : data(*d.scale) {
    const ScalarType sums = sum_type(d.in);
    if (data.scalar_type() != sums) data = torch::stable::to(data, sums);
    d.p.scale = data.const_data_ptr();
    d.p.scale_stride = data.numel() == 1 ? 0 : 1;
    if (!has_log_scale(d.likelihood)) return;
    log_scale = empty(data, {1 + (d.mask ? data.numel() : 0)}, ScalarType::Double);
    auto* out = static_cast<double*>(log_scale->mutable_data_ptr());
    run("log_scale_sum", data, cuda::log_scale_sum, d.dtype, d.p.scale, data.numel(), d.p.size, out,
        d.mask ? out + 1 : nullptr);
    d.p.log_scale = out;
  }
};

struct MaskOnDevice {
  Maybe constants;
  cuda::Mask mask{};

  explicit MaskOnDevice(const Decoder& d) {
    mask.seen = static_cast<const uint8_t*>(d.mask->const_data_ptr());
    mask.examples = d.mask->sizes()[0];
    if (!has_row_constant(d.likelihood)) return;
    constants = empty(*d.mask, {mask.examples}, ScalarType::Double);
    auto* out = static_cast<double*>(constants->mutable_data_ptr());
    const double* logs = d.p.log_scale;
    run("row_constants", *d.mask, cuda::row_constants, d.likelihood, mask, d.p.size, logs,
        logs != nullptr ? logs + 1 : nullptr, d.scale ? d.scale->numel() : 0, out);
    mask.constants = out;
  }
};

cuda::Mask mask_of(const Decoder& d) {
  return d.mask ? static_cast<const MaskOnDevice*>(d.mask_layout.get())->mask : cuda::Mask{};
}

// Sums over rows per dimension, in parts that do not depend on the device's scheduling: as many as
// keep it busy.
struct PartialSums {
  Tensor sums;

  // Says to a kernel where they are, and how many.
  PartialSums(In like, int64_t rows, int64_t size, double*& data, int64_t& parts)
      : sums(empty(like, {parts_of(like, rows, size), size}, ScalarType::Double)) {
    data = static_cast<double*>(sums.mutable_data_ptr());
    parts = sums.sizes()[0];
  }
  // out: of one element, or one a dimension.
  void finish(In out) const {
    run("finish_sums", out, cuda::finish_sums, dtype_of(out, "sums"),
        static_cast<const double*>(sums.const_data_ptr()), sums.sizes()[0], sums.sizes()[1],
        out.mutable_data_ptr(), out.numel());
  }

 private:
  static int64_t parts_of(In like, int64_t rows, int64_t size) {
    const OnDevice device(like);
    return cuda::sum_parts(rows, size);
  }
};

// The sums are made in the pass that makes the gradients of the rows.
class GradientOnCuda final : public Gradient {
 public:
  GradientOnCuda(const Decoder& d, int64_t rows, bool of_bias) : d_(d) {
    p_.mask = mask_of(d);
    if (of_bias) bias_.emplace(d.in, rows, d.p.size, p_.bias_parts, p_.parts);
    if (d.scale_kind == ScaleKind::kShared) {
      scale_.emplace(d.in, rows, d.p.size, p_.scale_parts, p_.parts);
    }
  }
  void add(const LogWeightGradParams& p, int64_t begin, int64_t end) override {
    static_cast<LogWeightGradParams&>(p_) = p;
    p_.begin = begin;
    p_.end = end;
    run("log_weights_backward", d_.in, cuda::log_weights_backward, d_.likelihood, d_.dtype,
        d_.scale_kind, p_);
    p_.accumulate = true;
  }
  void finish(const Tensor* grad_bias, In grad_scale) override {
    if (!p_.accumulate) add({d_.p, nullptr, nullptr, nullptr}, 0, 0);  // sums of nothing
    if (bias_) bias_->finish(*grad_bias);
    if (scale_) scale_->finish(grad_scale);
  }

 private:
  const Decoder& d_;
  std::optional<PartialSums> bias_, scale_;
  cuda::LogWeightGrads p_{};
};

class Cuda final : public Backend {
  void check_device(In t, const char* name, In like) const override {
    check_cuda(like);
    STD_TORCH_CHECK(t.device() == like.device(), name,
                    " must be on the device of the other tensors");
  }

// Of most operators the kernel's parameters are all there is to its launch.
#define DVAE_LAUNCH(op, Params) \
  void op(In on, DType t, const Params& p) const override { run(#op, on, cuda::op, t, p); }
  DVAE_LAUNCH(corrupt, CorruptParams)
  DVAE_LAUNCH(corrupt_backward, CorruptParams)
  DVAE_LAUNCH(sample_latent, LatentParams)
  DVAE_LAUNCH(sample_latent_backward, LatentParams)
  DVAE_LAUNCH(latent_log_ratio, LatentParams)
  DVAE_LAUNCH(latent_log_ratio_backward, LatentParams)
  DVAE_LAUNCH(mixture_log_ratio, MixtureParams)
  DVAE_LAUNCH(mixture_log_ratio_backward, MixtureParams)
  DVAE_LAUNCH(logmeanexp, LogMeanExpParams)
  DVAE_LAUNCH(logmeanexp_backward, LogMeanExpParams)
#undef DVAE_LAUNCH

  void corrupt_backward_std(In on, DType t, const CorruptParams& p, In grad_std) const override {
    double* data = nullptr;
    int64_t parts = 0;
    const PartialSums sums(on, p.copies * p.examples, p.size, data, parts);
    run("corrupt_backward_std", on, cuda::corrupt_backward_std, t, p, data, parts);
    sums.finish(grad_std);
  }

  void lay_out_scale(Decoder& d) const override {
    d.scale_layout = std::make_shared<ScaleOnDevice>(d);
  }
  void lay_out_mask(Decoder& d) const override {
    d.mask_layout = std::make_shared<MaskOnDevice>(d);
  }
  void log_weights(const Decoder& d, const LogWeightParams& p, int64_t begin,
                   int64_t end) const override {
    run("log_weights", d.in, cuda::log_weights, d.likelihood, d.dtype, d.scale_kind,
        cuda::LogWeights{p, begin, end, mask_of(d)});
  }
  std::unique_ptr<Gradient> gradient(const Decoder& d, int64_t rows, bool of_bias) const override {
    return std::make_unique<GradientOnCuda>(d, rows, of_bias);
  }
  void iwae(const Decoder& d, const IwaeParams& given, In grad_scale) const override {
    cuda::Iwae p{};
    static_cast<IwaeParams&>(p) = given;
    p.mask = mask_of(d);
    std::optional<PartialSums> sums;
    if (d.scale_kind == ScaleKind::kShared) {
      sums.emplace(d.in, p.rows * p.samples, p.size, p.scale_parts, p.parts);
    }
    run("iwae", d.in, cuda::iwae, d.likelihood, d.dtype, d.scale_kind, p);
    if (sums) sums->finish(grad_scale);
  }

  void multiply(In out, In a, In b) const override {
    const OnDevice device(out);
    TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
  }
  void add_product(In out, In to, In a, In b) const override {
    const OnDevice device(out);
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_cuda_addmm_out(out.get(), to.get(), a.get(), b.get(), 1.0, 1.0));
  }
  void add_to(In total, In part) const override {
    run("linear_log_weights_backward", total, cuda::add_to, dtype_of(part, "part"),
        total.mutable_data_ptr(), part.const_data_ptr(), part.numel());
  }
  // The output takes a third of the second-level cache, so that the kernel finds there what the
  // matrix product wrote, and has rows enough for both to run at full speed. Not measured yet.
  int64_t tile_rows(In on, int64_t size) const override {
    int cache = 0;
    if (cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, on.get_device_index()) !=
        cudaSuccess) {
      cache = 0;
    }
    const int64_t row = std::max<int64_t>(1, size * static_cast<int64_t>(on.element_size()));
    return std::max<int64_t>(cache / 3 / row, 1024);
  }
  void softplus(In on, DType t, const void* x, void* out, int64_t n) const override {
    run("softplus", on, cuda::softplus, t, x, out, n);
  }
  void softplus_backward(In on, DType t, const void* grad, const void* out, void* grad_x,
                         int64_t n) const override {
    run("softplus_backward", on, cuda::softplus_backward, t, grad, out, grad_x, n);
  }
  void rescale(In grad, In factor, int64_t rows) const override {
    run("rescale_", grad, cuda::rescale, dtype_of(grad, "grad"), grad.mutable_data_ptr(),
        dtype_of(factor, "factor"), factor.const_data_ptr(), factor.numel(), rows,
        rows > 0 ? grad.numel() / rows : 0);
  }

  void lse_update(In on, DType t, const double* state, const LogMeanExpParams& p,
                  double* out) const override {
    run("lse_update", on, cuda::lse_update, t, state, p.log_w, p.rows, p.samples, out);
  }
};

}  // namespace

const Backend& cuda_backend() {
  static const Cuda cuda;
  return cuda;
}

}  // namespace dvae::glue
