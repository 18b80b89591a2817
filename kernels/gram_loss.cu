// h is symmetric, so that of every pair of off-diagonal panels only one is multiplied, with twice
// its values. The products are those of the forward pass (kernels/linear.h): bfloat16 has the range
// of float32, and no other kernels have to be loaded.
#include "kernels/gram_loss_cuda.h"
#include "kernels/linear.h"
#include "kernels/reduce_cuda.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

constexpr int threads = 256;
constexpr std::int64_t panel = 2048;

// triangle[i, j] = h_ij within i's panel, twice that right of it, untouched left of it.
__global__ void __launch_bounds__(row_threads)
    triangle_kernel(Matrix<const float> h, __nv_bfloat16* triangle) {
  const std::int64_t j = first_column(1);
  if (j >= h.cols) return;
  for (std::int64_t i = blockIdx.y; i < h.rows; i += gridDim.y) {
    if (j / panel < i / panel) continue;
    const float value = h.data[i * h.stride + j];
    triangle[i * h.cols + j] = __float2bfloat16_rn(j / panel > i / panel ? 2.0f * value : value);
  }
}

template <class A, class B>
__global__ void __launch_bounds__(row_threads)
    subtract_kernel(const A* a, std::int64_t a_stride, const B* b, std::int64_t b_stride,
                    Matrix<__nv_bfloat16> delta) {
  const std::int64_t c = first_column(1);
  if (c >= delta.cols) return;
  for (std::int64_t r = blockIdx.y; r < delta.rows; r += gridDim.y)
    delta.data[r * delta.stride + c] =
        __float2bfloat16_rn(__fsub_rn(widen(a[r * a_stride + c]), widen(b[r * b_stride + c])));
}

// row_loss[row] = Σ_c a b.
template <int count>
__global__ void __launch_bounds__(threads)
    dot_rows_kernel(const __nv_bfloat16* a, const __nv_bfloat16* b, std::int64_t d,
                    double* row_loss) {
  const std::int64_t row = blockIdx.x;
  float sum = 0.0f;
  for (std::int64_t c = std::int64_t{threadIdx.x} * count; c < d; c += threads * count) {
    float x[count];
    float y[count];
    load(a + row * d + c, x);
    load(b + row * d + c, y);
#pragma unroll
    for (int i = 0; i < count; ++i) sum = fmaf(x[i], y[i], sum);
  }
  const double total = reduce_block<threads>(static_cast<double>(sum));
  if (threadIdx.x == 0) row_loss[row] = total;
}

// loss[blockIdx.x] = Σ row_loss over the rows of a run.
__global__ void __launch_bounds__(threads)
    add_rows_kernel(const double* row_loss, std::int64_t rows, double* loss) {
  double sum = 0.0;
  for (std::int64_t r = threadIdx.x; r < rows; r += threads) sum += row_loss[blockIdx.x * rows + r];
  const double total = reduce_block<threads>(sum);
  if (threadIdx.x == 0) loss[blockIdx.x] = total;
}

}  // namespace

GramMatrix gram_matrix(Matrix<const float> h, Stream& stream) {
  TensorArray triangle(DType::bf16, h.rows, h.cols, stream);
  if (h.size() > 0) {
    auto* data = static_cast<__nv_bfloat16*>(triangle.view.data);
    triangle_kernel<<<row_grid(h.rows, h.cols, 1), row_threads, 0, stream.cuda().stream>>>(h, data);
    check_launch();
  }
  return {std::move(triangle.memory), triangle.view};
}

void gram_losses(ConstTensor delta, std::int64_t runs, const GramMatrix& h, double* loss,
                 Stream& stream) {
  const std::int64_t d = delta.cols;
  const TensorArray product(DType::bf16, delta.rows, d, stream);
  const Array<double> row_loss(1, delta.rows, stream);
  for (std::int64_t begin = 0; begin < d; begin += panel) {
    const std::int64_t width = std::min(panel, d - begin);
    const ConstTensor right =
        h.values.row_range(begin, width)
            .col_range(begin, d - begin);  // of the diagonal, and the panel on it
    qpipe::linear(delta.col_range(begin, d - begin), right, {},
                  product.view.col_range(begin, width), stream);
  }
  const auto* x = static_cast<const __nv_bfloat16*>(delta.data);
  const auto* y = static_cast<const __nv_bfloat16*>(product.view.data);
  const cudaStream_t queue = stream.cuda().stream;
  with_count(d % vector_elements == 0, [&](auto count) {
    dot_rows_kernel<decltype(count)::value>
        <<<static_cast<unsigned>(delta.rows), threads, 0, queue>>>(x, y, d, row_loss.view.data);
  });
  add_rows_kernel<<<static_cast<unsigned>(runs), threads, 0, queue>>>(row_loss.view.data,
                                                                      delta.rows / runs, loss);
  check_launch();
}

void gram_loss(ConstTensor a, ConstTensor b, const GramMatrix& h, Matrix<double> loss,
               Stream& stream) {
  const TensorArray delta(DType::bf16, a.rows, a.cols, stream);
  const Matrix<__nv_bfloat16> to(static_cast<__nv_bfloat16*>(delta.view.data), a.rows, a.cols);
  with_elements(a, [&](const auto* x) {
    with_elements(b, [&](const auto* y) {
      subtract_kernel<<<row_grid(a.rows, a.cols, 1), row_threads, 0, stream.cuda().stream>>>(
          x, a.stride, y, b.stride, to);
    });
  });
  check_launch();
  gram_losses(delta, 1, h, loss.data, stream);
}

}  // namespace qpipe::cuda
