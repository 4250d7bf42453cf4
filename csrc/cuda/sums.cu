// The last step of sums over rows (columns.cuh), and what log p has once a row. Small: (parts + 1)
// · D numbers, and with a mask a byte an element of x. Registers (sm_90a): 28–40.
#include "../core/likelihoods.h"
#include "launch.cuh"
#include "reduce.cuh"

namespace dvae::cuda {
namespace {

constexpr int kWide = 1024;

// out[j] = Σ over parts of dimension j: a block takes kWarp dimensions, each warp a share of the
// parts.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    sum_parts_kernel(const double* parts, int64_t count_parts, int64_t size, T* out) {
  constexpr int kWarps = kThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  double* shared = shared_at<double>();
  for (int64_t first = int64_t{blockIdx.x} * kWarp; first < size;
       first += int64_t{gridDim.x} * kWarp) {
    const int64_t j = first + lane;
    double sum = 0;
    for (int64_t part = warp; part < count_parts && j < size; part += kWarps) {
      sum += parts[part * size + j];
    }
    __syncthreads();  // the last dimensions' sums have been read
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (warp != 0 || j >= size) continue;
    for (int w = 1; w < kWarps; ++w) sum += shared[w * kWarp + lane];
    store(out[j], static_cast<accumulate_t<T>>(sum));
  }
}

// out[0] = Σ over everything; one block.
template <class T>
__global__ void __launch_bounds__(kWide) sum_all_kernel(const double* parts, int64_t n, T* out) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kWide) sum += parts[i];
  sum = BlockTeam<kWide>::sum(sum);
  if (threadIdx.x == 0) store(*out, static_cast<accumulate_t<T>>(sum));
}

// Σ log scale, and each if `each` is not null; one block.
template <class A>
__global__ void __launch_bounds__(kWide)
    log_scale_kernel(const A* scale, int64_t count, int64_t size, double* out, double* each) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kWide) {
    const double log_scale = log(static_cast<double>(scale[i]));
    sum += log_scale;
    if (each != nullptr) each[i] = log_scale;
  }
  sum = BlockTeam<kWide>::sum(sum);
  // One element that serves all dimensions.
  if (threadIdx.x == 0) *out = count == size ? sum : sum * static_cast<double>(size);
}

// A warp an example. Of one that is known whole the sum is the one that rows without a mask have.
template <class L>
__global__ void __launch_bounds__(kThreads, 1)
    row_constants_kernel(const Mask mask, int64_t size, const double* log_scale, const double* each,
                         int64_t count, double* out) {
  for (int64_t n = first_item() / kWarp; n < mask.examples; n += item_stride() / kWarp) {
    int64_t known = 0;
    double sum = 0;
    for (int64_t i = WarpTeam::rank(); i < size; i += kWarp) {
      if (mask.seen[n * size + i] == 0) continue;
      ++known;
      if (each != nullptr && count != 1) sum += each[i];
    }
    known = WarpTeam::sum(known);
    sum = WarpTeam::sum(sum);
    // Of nothing known 0, of a scale of 0, inf or NaN too.
    if (each != nullptr && count == 1 && known > 0) sum = *each * static_cast<double>(known);
    if (log_scale != nullptr && known == size) sum = *log_scale;
    if (WarpTeam::rank() == 0) out[n] = L::row_constant(known, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    add_to_kernel(accumulate_t<T>* total, const T* part, int64_t n) {
  for (int64_t i = first_item(); i < n; i += item_stride()) total[i] = total[i] + load(part[i]);
}

}  // namespace

int64_t sum_parts(int64_t rows, int64_t size) {
  Device device;
  if (query(device) != cudaSuccess) return 1;
  // Two blocks a multiprocessor are busy with the loads they have under way, and leave few parts.
  const int64_t tiles = std::max<int64_t>(divide_up(size, 4 * kThreads), 1);
  const int64_t wanted = divide_up(int64_t{device.multiprocessors} * 2, tiles);
  return std::clamp<int64_t>(rows / 4, 1, wanted);
}

cudaError_t finish_sums(DType dtype, const double* parts, int64_t count_parts, int64_t size,
                        void* out, int64_t count, cudaStream_t stream) {
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (count == 1) {
      return launch(&sum_all_kernel<T>, grid_of(1), kWide, BlockTeam<kWide>::kBytes, stream, parts,
                    count_parts * size, static_cast<T*>(out));
    }
    if (size == 0) return cudaSuccess;
    return launch(&sum_parts_kernel<T>, grid_of(blocks_for(device, size, kWarp)), kThreads,
                  kThreads * static_cast<int64_t>(sizeof(double)), stream, parts, count_parts, size,
                  static_cast<T*>(out));
  });
}

cudaError_t log_scale_sum(DType dtype, const void* scale, int64_t count, int64_t size, double* out,
                          double* each, cudaStream_t stream) {
  return with_dtype(dtype, [&](auto type) {
    using A = accumulate_t<typename decltype(type)::type>;
    return launch(&log_scale_kernel<A>, grid_of(1), kWide, BlockTeam<kWide>::kBytes, stream,
                  static_cast<const A*>(scale), count, size, out, each);
  });
}

cudaError_t row_constants(LikelihoodKind likelihood, const Mask& mask, int64_t size,
                          const double* log_scale, const double* each, int64_t count, double* out,
                          cudaStream_t stream) {
  if (mask.examples == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  const dim3 grid = grid_of(blocks_for(device, mask.examples, kThreads / kWarp));
  return with_likelihood(likelihood, [&](auto l) {
    return launch(&row_constants_kernel<typename decltype(l)::type>, grid, kThreads, 0, stream,
                  mask, size, log_scale, each, count, out);
  });
}

cudaError_t add_to(DType dtype, void* total, const void* part, int64_t n, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  Device device;
  if (const cudaError_t error = query(device)) return error;
  return with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(&add_to_kernel<T>, grid_of(blocks_for(device, n, kThreads)), kThreads, 0, stream,
                  static_cast<accumulate_t<T>*>(total), static_cast<const T*>(part), n);
  });
}

}  // namespace dvae::cuda
