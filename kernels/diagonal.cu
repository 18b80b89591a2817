#include "kernels/cuda_handles.h"
#include "kernels/diagonal.h"

namespace qpipe::cuda {

namespace {
__global__ void copy_diagonal(Matrix<const float> a, Matrix<float> out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < a.cols) out.data[i] = a.data[i * (a.stride + 1)];
}

__global__ void fill_identity(Matrix<float> a) {
  const std::int64_t j = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (j >= a.cols) return;
  for (std::int64_t i = blockIdx.y; i < a.rows; i += gridDim.y)
    a.data[i * a.stride + j] = i == j ? 1.0f : 0.0f;
}
}  // namespace

void diagonal(Matrix<const float> a, Matrix<float> out, Stream& stream) {
  constexpr int threads = 256;
  copy_diagonal<<<static_cast<unsigned>((a.cols + threads - 1) / threads), threads, 0,
                  stream.cuda().stream>>>(a, out);
  check_launch();
}

void set_identity(Matrix<float> a, Stream& stream) {
  if (a.cols == 0) return;
  constexpr int threads = 256;
  constexpr std::int64_t most_rows_at_once = 1024;
  const dim3 blocks(static_cast<unsigned>((a.cols + threads - 1) / threads),
                    static_cast<unsigned>(a.rows < most_rows_at_once ? a.rows : most_rows_at_once));
  fill_identity<<<blocks, threads, 0, stream.cuda().stream>>>(a);
  check_launch();
}

}  // namespace qpipe::cuda
