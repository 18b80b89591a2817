#include "kernels/scaling.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

template <class T>
__global__ void scale_weight_kernel(const T* w, std::int64_t stride, Matrix<const float> column,
                                    Matrix<const float> row, Matrix<float> out) {
  const std::int64_t c = first_column(1);
  if (c >= out.cols) return;
  const float factor = column.data == nullptr ? 1.0f : column.data[c];
  for (std::int64_t r = blockIdx.y; r < out.rows; r += gridDim.y)
    out.data[r * out.stride + c] = __fdiv_rn(__fmul_rn(widen(w[r * stride + c]), factor),
                                             row.data == nullptr ? 1.0f : row.data[r]);
}

__global__ void unscale_hessian_kernel(Matrix<float> h, Matrix<const float> s) {
  const std::int64_t j = first_column(1);
  if (j >= h.cols) return;
  for (std::int64_t i = blockIdx.y; i < h.rows; i += gridDim.y) {
    float& value = h.data[i * h.stride + j];
    value = __fdiv_rn(value, __fmul_rn(s.data[i], s.data[j]));
  }
}

}  // namespace

void scale_weight(ConstTensor w, Matrix<const float> column, Matrix<const float> row,
                  Matrix<float> out, Stream& stream) {
  if (w.size() == 0) return;
  with_elements(w, [&](const auto* from) {
    scale_weight_kernel<<<row_grid(w.rows, w.cols, 1), row_threads, 0, stream.cuda().stream>>>(
        from, w.stride, column, row, out);
  });
  check_launch();
}

void unscale_hessian(Matrix<float> h, Matrix<const float> s, Stream& stream) {
  if (h.size() == 0) return;
  unscale_hessian_kernel<<<row_grid(h.rows, h.cols, 1), row_threads, 0, stream.cuda().stream>>>(h,
                                                                                                s);
  check_launch();
}

}  // namespace qpipe::cuda
