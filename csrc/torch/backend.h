// What a device must do for the operators (ops/*.cpp), which check and allocate once for all of
// them: launch the kernels. Tensors come here contiguous, checked, and with somewhere to write.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "tensor.h"

namespace dvae::glue {

struct Decoder;  // ops/decoder.h

// The gradient of log_weights, of all rows or in tiles of them. Those of a shared scale and of a
// layer's bias are sums over rows: added up tile by tile, written at the end.
class Gradient {
 public:
  virtual ~Gradient() = default;
  // Rows [begin, end).
  virtual void add(const LogWeightGradParams&, int64_t begin, int64_t end) = 0;
  // grad_bias: null, or one a dimension. grad_scale: of one element or one a dimension.
  virtual void finish(const Tensor* grad_bias, In grad_scale) = 0;
};

// A dense layer; bias may be null.
struct Layer {
  Tensor weight;  // (outputs, inputs)
  Maybe bias;
};

// `on`: a tensor of the call, of the dtype DType, which says which of several devices it is for.
class Backend {
 public:
  // Whatever brings a call to the CPU has all its tensors there; to another device, perhaps not.
  virtual void check_device(In, const char* /*name*/, const Tensor& /*like*/) const {}
  void check(In t, const char* name, std::initializer_list<int64_t> shape, ScalarType dtype,
             In like) const {
    check_shape(t, name, shape);
    check_dtype(t, name, dtype);
    check_device(t, name, like);
  }
  NoiseParams noise(In seed, int64_t first_example, int64_t first_sample, In like) const {
    STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                    "seed must be an int64 tensor of one element, got shape ", shape_of(seed));
    check_device(seed, "seed", like);
    STD_TORCH_CHECK(first_example >= 0 && first_example <= UINT32_MAX && first_sample >= 0 &&
                        first_sample <= UINT32_MAX,
                    "first_example and first_sample must lie in [0, 2**32), got ", first_example,
                    " and ", first_sample);
    return {static_cast<const int64_t*>(seed.const_data_ptr()),
            static_cast<uint32_t>(first_example), static_cast<uint32_t>(first_sample)};
  }

  virtual void corrupt(In on, DType, const CorruptParams&) const = 0;
  virtual void corrupt_backward(In on, DType, const CorruptParams&) const = 0;
  // grad_std: of one element or one a dimension.
  virtual void corrupt_backward_std(In on, DType, const CorruptParams&, In grad_std) const = 0;

  virtual void sample_latent(In on, DType, const LatentParams&) const = 0;
  virtual void sample_latent_backward(In on, DType, const LatentParams&) const = 0;
  virtual void latent_log_ratio(In on, DType, const LatentParams&) const = 0;
  virtual void latent_log_ratio_backward(In on, DType, const LatentParams&) const = 0;

  virtual void mixture_log_ratio(In on, DType, const MixtureParams&) const = 0;
  virtual void mixture_log_ratio_backward(In on, DType, const MixtureParams&) const = 0;

  // For a decoder whose rows share their scale: what its params say of it, and layout.
  virtual void lay_out_scale(Decoder&) const = 0;
  // For one with a mask, after its scale.
  virtual void lay_out_mask(Decoder&) const = 0;
  virtual void log_weights(const Decoder&, const LogWeightParams&, int64_t begin,
                           int64_t end) const = 0;
  // rows: the most that are added at once.
  virtual std::unique_ptr<Gradient> gradient(const Decoder&, int64_t rows, bool of_bias) const = 0;
  // grad_scale: of a shared scale, as Gradient's.
  virtual void iwae(const Decoder&, const IwaeParams&, In grad_scale) const = 0;

  // Matrix products: out = a b, and out = to + a b, where to is broadcast.
  virtual void multiply(In out, In a, In b) const = 0;
  virtual void add_product(In out, In to, In a, In b) const = 0;
  // total (float32) += part (16 bits).
  virtual void add_to(In total, In part) const = 0;
  // Rows of a last layer's output, of `size` elements, to be held at a time.
  virtual int64_t tile_rows(In on, int64_t size) const = 0;
  // log_weights of a decoder of dense layers from their input, without ever holding a layer's
  // output; false where the device or the dtype has none such.
  virtual bool log_weights_of_layers(const Decoder&, const std::vector<Layer>&, Activation,
                                     const LogWeightParams&) const {
    return false;
  }

  virtual void softplus(In on, DType, const void* x, void* out, int64_t n) const = 0;
  virtual void softplus_backward(In on, DType, const void* grad, const void* out, void* grad_x,
                                 int64_t n) const = 0;
  // grad (rows, …) *= factor, of one element or `rows`.
  virtual void rescale(In grad, In factor, int64_t rows) const = 0;

  virtual void logmeanexp(In on, DType, const LogMeanExpParams&) const = 0;
  virtual void logmeanexp_backward(In on, DType, const LogMeanExpParams&) const = 0;
  // States as LogSumExp keeps them, one a row.
  virtual void lse_update(In on, DType, const double* state, const LogMeanExpParams&,
                          double* out) const = 0;

 protected:
  ~Backend() = default;
};

const Backend& cpu_backend();
const Backend& cuda_backend();

}  // namespace dvae::glue
