#include "kernels/shared_key.h"
#include "kernels/weights_cuda.h"

namespace qpipe::cuda {

namespace {

// own: columns of a head in kv, nope + V; wide: in out, nope + shared + V.
template <int count, class T>
__global__ __launch_bounds__(row_threads) void insert_shared_key_kernel(
    const T* kv, std::int64_t kv_stride, const T* key, std::int64_t key_stride, T* out,
    std::int64_t out_stride, std::int64_t rows, int heads, int nope, int shared, int own) {
  const std::int64_t c = first_column(count);
  const int wide = own + shared;
  if (c >= std::int64_t{heads} * wide) return;
  const std::int64_t head = c / wide;
  const int column = static_cast<int>(c % wide);
  const bool is_shared = column >= nope && column < nope + shared;
  const T* from = is_shared ? key + (column - nope)
                            : kv + head * own + (column < nope ? column : column - shared);
  const std::int64_t stride = is_shared ? key_stride : kv_stride;
  using Elements = Packet<T, count>;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y)
    *reinterpret_cast<Elements*>(out + r * out_stride + c) =
        *reinterpret_cast<const Elements*>(from + r * stride);
}

}  // namespace

void insert_shared_key(ConstTensor kv, ConstTensor key, std::int64_t heads, std::int64_t nope,
                       Tensor out, Stream& stream) {
  if (out.size() == 0) return;
  const std::int64_t own = kv.cols / heads;
  const bool vectors = vectorizable(kv) && (key.cols == 0 || vectorizable(key)) &&
                       vectorizable(out) && nope % vector_elements == 0 &&
                       own % vector_elements == 0;
  with_elements(out, [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    with_count(vectors, [&](auto count) {
      insert_shared_key_kernel<decltype(count)::value, T>
          <<<row_grid(out.rows, out.cols, count), row_threads, 0, stream.cuda().stream>>>(
              static_cast<const T*>(kv.data), kv.stride, static_cast<const T*>(key.data),
              key.stride, to, out.stride, out.rows, static_cast<int>(heads), static_cast<int>(nope),
              static_cast<int>(key.cols), static_cast<int>(own));
    });
  });
  check_launch();
}

}  // namespace qpipe::cuda
