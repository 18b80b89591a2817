#include <cmath>
#include <memory>
#include <vector>

#include "kernels/cuda_handles.h"
#include "kernels/factor.h"

namespace qpipe::cuda {

namespace {

constexpr int edge = 32;
constexpr int edge_rows = 8;

// Strict lower triangle of the reversed permuted matrix: a[i, j] = h[perm[d−1−i], perm[d−1−j]]. With h in a's memory and perm the identity
// it reads the strict upper triangle only.
__global__ void gather_reversed(Matrix<const float> h, Matrix<const std::int32_t> perm, Matrix<float> a) {
  const std::int64_t d = a.rows;
  const std::int64_t j = std::int64_t{blockIdx.x} * edge + threadIdx.x;
  for (int r = threadIdx.y; r < edge; r += edge_rows) {
    const std::int64_t i = std::int64_t{blockIdx.y} * edge + r;
    if (i >= d || j >= i) continue;
    a.data[i * a.stride + j] = h.data[perm.data[d - 1 - i] * h.stride + perm.data[d - 1 - j]];
  }
}

// Its diagonal. A thread owns entries k and d−1−k: both are read before one is written.
__global__ void gather_reversed_diagonal(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<float> a) {
  const std::int64_t d = a.rows;
  const std::int64_t k = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (2 * k >= d) return;
  const auto damped = [&](float value) { return static_cast<float>((value == 0.0f ? 1.0 : static_cast<double>(value)) + damp); };
  const float first = damped(h.data[perm.data[k] * (h.stride + 1)]);
  const float last = damped(h.data[perm.data[d - 1 - k] * (h.stride + 1)]);
  a.data[k * (a.stride + 1)] = last;
  a.data[(d - 1 - k) * (a.stride + 1)] = first;
}

__global__ void take_pivot(Matrix<const float> l, Matrix<float> pivot) {
  const std::int64_t k = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t from = l.rows - 1 - k;
  if (k < l.rows) pivot.data[k] = l.data[from * (l.stride + 1)];
}

// In place: N[r, c] = L[d−1−r, d−1−c] / pivot[c] for r < c, 1 on the diagonal, 0 below it.
// (r, c) → (d−1−r, d−1−c) maps the strict upper triangle onto the strict lower one, so each thread owns both of its elements.
__global__ void reverse_and_normalise(Matrix<const float> pivot, Matrix<float> a) {
  const std::int64_t d = a.rows;
  const std::int64_t c = std::int64_t{blockIdx.x} * edge + threadIdx.x;
  for (int i = threadIdx.y; i < edge; i += edge_rows) {
    const std::int64_t r = std::int64_t{blockIdx.y} * edge + i;
    if (c >= d || r > c) continue;
    float& upper = a.data[r * a.stride + c];
    if (r == c) {
      upper = 1.0f;
      continue;
    }
    float& lower = a.data[(d - 1 - r) * a.stride + (d - 1 - c)];
    upper = lower / pivot.data[c];
    lower = 0.0f;
  }
}

struct DestroyParams {
  void operator()(cusolverDnParams_t params) const { cusolverDnDestroyParams(params); }
};

}  // namespace

bool factor(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<float> n, Matrix<float> pivot, Stream& stream) {
  const std::int64_t d = h.rows;
  CudaHandles& handles = stream.cuda();
  const auto tiles = static_cast<unsigned>((d + edge - 1) / edge);
  constexpr int threads = 256;
  gather_reversed<<<dim3(tiles, tiles), dim3(edge, edge_rows), 0, handles.stream>>>(h, perm, n);
  check_launch();
  gather_reversed_diagonal<<<static_cast<unsigned>((d + threads - 1) / threads), threads, 0, handles.stream>>>(h, perm, damp, n);
  check_launch();

  cusolverDnParams_t raw_params = nullptr;
  check(cusolverDnCreateParams(&raw_params));
  const std::unique_ptr<cusolverDnParams, DestroyParams> params(raw_params);
  // Row-major lower is column-major upper. The 64-bit interface: d² may exceed 2^31.
  constexpr cublasFillMode_t triangle = CUBLAS_FILL_MODE_UPPER;
  std::size_t device_bytes = 0;
  std::size_t host_bytes = 0;
  check(cusolverDnXpotrf_bufferSize(handles.cusolver(), params.get(), triangle, d, CUDA_R_32F, n.data, n.stride, CUDA_R_32F, &device_bytes,
                                    &host_bytes));
  const Buffer workspace(device_bytes, stream);
  std::vector<unsigned char> host_workspace(host_bytes);
  const Array<int> info(1, 1, stream);
  check(cusolverDnXpotrf(handles.cusolver(), params.get(), triangle, d, CUDA_R_32F, n.data, n.stride, CUDA_R_32F, workspace.data(),
                         device_bytes, host_workspace.data(), host_bytes, info.view.data));

  take_pivot<<<static_cast<unsigned>((d + threads - 1) / threads), threads, 0, handles.stream>>>(n, pivot);
  check_launch();
  int host_info = 0;
  std::vector<float> host_pivot(static_cast<std::size_t>(d));
  copy_to_host(&host_info, info.view.data, sizeof host_info, stream);
  copy_to_host(host_pivot.data(), pivot.data, host_pivot.size() * sizeof(float), stream);
  if (host_info != 0) return false;
  for (const float value : host_pivot)  // cuSOLVER can report success on NaN
    if (!(value > 0.0f) || !std::isfinite(value)) return false;

  reverse_and_normalise<<<dim3(tiles, tiles), dim3(edge, edge_rows), 0, handles.stream>>>(pivot, n);
  check_launch();
  stream.synchronize();
  return true;
}

}  // namespace qpipe::cuda
