#include "kernels/cholesky_cuda.h"
#include "kernels/cuda_handles.h"
#include "kernels/factor.h"

namespace qpipe::cuda {

namespace {

constexpr int edge = 32;
constexpr int edge_rows = 8;

// entry[k]: entry (k, k) of the permuted, damped matrix; scale[k]: the power of two that brings it
// into [2^28, 2^30), 1 where it is no positive number.
__global__ void choose_scales(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp,
                              Matrix<float> entry, Matrix<float> scale) {
  const std::int64_t k = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k >= scale.cols) return;
  const float value = h.data[perm.data[k] * (h.stride + 1)];
  const auto damped = static_cast<float>((value == 0.0f ? 1.0 : static_cast<double>(value)) + damp);
  entry.data[k] = damped;
  scale.data[k] =
      damped > 0.0f && isfinite(damped) ? ldexpf(1.0f, 14 - (ilogbf(damped) >> 1)) : 1.0f;
}

// Lower triangle of the reversed, permuted, scaled matrix: a[i, j] = h[perm[d−1−i], perm[d−1−j]] ·
// scale[d−1−i] · scale[d−1−j]. With h in a's memory and perm the identity it reads the strict upper
// triangle only.
__global__ void gather_reversed(Matrix<const float> h, Matrix<const std::int32_t> perm,
                                Matrix<const float> entry, Matrix<const float> scale,
                                Matrix<float> a, Matrix<double> diagonal) {
  const std::int64_t d = a.rows;
  const std::int64_t j = std::int64_t{blockIdx.x} * edge + threadIdx.x;
  if (blockIdx.x > blockIdx.y || j >= d) return;
  const std::int64_t column = perm.data[d - 1 - j];
  const float column_scale = scale.data[d - 1 - j];
  for (int r = threadIdx.y; r < edge; r += edge_rows) {
    const std::int64_t i = std::int64_t{blockIdx.y} * edge + r;
    if (i >= d || j > i) continue;
    float value = i == j ? entry.data[d - 1 - i] : h.data[perm.data[d - 1 - i] * h.stride + column];
    value = value * scale.data[d - 1 - i] *
            column_scale;  // in this order: the product of two scales may overflow
    a.data[i * a.stride + j] = value;
    if (i == j) diagonal.data[i] = value;
  }
}

__global__ void take_pivots(Matrix<const float> l, Matrix<const float> scale, Matrix<float> pivot,
                            int* failed) {
  const std::int64_t k = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k >= l.rows) return;
  const float value = l.data[(l.rows - 1 - k) * (l.stride + 1)] * (1.0f / scale.data[k]);
  pivot.data[k] = value;
  if (!(value > 0.0f) || !isfinite(value)) *failed = 1;
}

// In place: N[r, c] = L[d−1−r, d−1−c] / (scale[r] · pivot[c]) for r < c, 1 on the diagonal, 0 below
// it. (r, c) → (d−1−r, d−1−c) maps the strict upper triangle onto the strict lower one, so each
// thread owns both of its elements.
__global__ void reverse_and_normalise(Matrix<const float> pivot, Matrix<const float> scale,
                                      Matrix<float> a) {
  const std::int64_t d = a.rows;
  const std::int64_t c = std::int64_t{blockIdx.x} * edge + threadIdx.x;
  if (blockIdx.y > blockIdx.x || c >= d) return;
  const float column_pivot = pivot.data[c];
  for (int i = threadIdx.y; i < edge; i += edge_rows) {
    const std::int64_t r = std::int64_t{blockIdx.y} * edge + i;
    if (r > c) continue;
    float& upper = a.data[r * a.stride + c];
    if (r == c) {
      upper = 1.0f;
      continue;
    }
    float& lower = a.data[(d - 1 - r) * a.stride + (d - 1 - c)];
    upper = lower * (1.0f / scale.data[r]) / column_pivot;
    lower = 0.0f;
  }
}

}  // namespace

bool factor(Matrix<const float> h, Matrix<const std::int32_t> perm, double damp, Matrix<float> n,
            Matrix<float> pivot, const FactorTeam& team, Stream& stream) {
  const std::int64_t d = h.rows;
  CudaHandles& handles = stream.cuda();
  constexpr int threads = 256;
  const auto lines = static_cast<unsigned>((d + threads - 1) / threads);
  const auto tiles = static_cast<unsigned>((d + edge - 1) / edge);
  const Array<float> scale(1, d, stream);
  const Array<double> diagonal(1, d, stream);
  const Array<int> failed(1, 1, stream);
  fill_zero(failed.view.data, sizeof(int), stream);
  choose_scales<<<lines, threads, 0, handles.stream>>>(h, perm, damp, pivot, scale);
  check_launch();
  gather_reversed<<<dim3(tiles, tiles), dim3(edge, edge_rows), 0, handles.stream>>>(
      h, perm, pivot, scale, n, diagonal);
  check_launch();
  cholesky(n, diagonal, team, stream);
  take_pivots<<<lines, threads, 0, handles.stream>>>(n, scale, pivot, failed.view.data);
  check_launch();
  reverse_and_normalise<<<dim3(tiles, tiles), dim3(edge, edge_rows), 0, handles.stream>>>(pivot,
                                                                                          scale, n);
  check_launch();
  int host_failed = 0;
  copy_to_host(&host_failed, failed.view.data, sizeof host_failed, stream);
  return host_failed == 0;
}

}  // namespace qpipe::cuda
