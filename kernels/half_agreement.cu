#include "kernels/cuda_handles.h"
#include "kernels/half_agreement.h"

namespace qpipe::cuda {

namespace {

constexpr int columns = 32;
constexpr int row_threads = 8;  // of a column, each with every eighth row

__global__ void agree(Matrix<const float> a, Matrix<const float> b, Matrix<float> agreement) {
  __shared__ double noise[row_threads][columns];
  __shared__ double power[row_threads][columns];
  const std::int64_t k = std::int64_t{blockIdx.x} * columns + threadIdx.x;
  double own_noise = 0.0;
  double own_power = 0.0;
  if (k < a.cols)
    for (std::int64_t r = threadIdx.y; r < a.rows; r += row_threads) {
      const double first = a.data[r * a.stride + k];
      const double second = b.data[r * b.stride + k];
      own_noise += (first - second) * (first - second);
      own_power += (first + second) * (first + second);
    }
  noise[threadIdx.y][threadIdx.x] = own_noise;
  power[threadIdx.y][threadIdx.x] = own_power;
  __syncthreads();
  if (threadIdx.y != 0 || k >= a.cols) return;
  for (int i = 1; i < row_threads; ++i) {
    own_noise += noise[i][threadIdx.x];
    own_power += power[i][threadIdx.x];
  }
  agreement.data[k] =
      own_power > 0.0 ? static_cast<float>(fmax(0.0, 1.0 - own_noise / own_power)) : 0.0f;
}

}  // namespace

void half_agreement(Matrix<const float> a, Matrix<const float> b, Matrix<float> agreement,
                    Stream& stream) {
  if (a.cols == 0) return;
  agree<<<static_cast<unsigned>((a.cols + columns - 1) / columns), dim3(columns, row_threads), 0,
          stream.cuda().stream>>>(a, b, agreement);
  check_launch();
}

}  // namespace qpipe::cuda
