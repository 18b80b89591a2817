#include "kernels/cuda_handles.h"
#include "kernels/diagonal.h"

namespace qpipe::cuda {

namespace {
__global__ void copy_diagonal(Matrix<const float> a, Matrix<float> out) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < a.cols) out.data[i] = a.data[i * (a.stride + 1)];
}
}  // namespace

void diagonal(Matrix<const float> a, Matrix<float> out, Stream& stream) {
  constexpr int threads = 256;
  copy_diagonal<<<static_cast<unsigned>((a.cols + threads - 1) / threads), threads, 0,
                  stream.cuda().stream>>>(a, out);
  check_launch();
}

}  // namespace qpipe::cuda
