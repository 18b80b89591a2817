#include <algorithm>
#include <vector>

#include "kernels/cuda_handles.h"
#include "kernels/linear.h"
#include "kernels/linears.h"
#include "kernels/linears_wgmma.h"
#include "kernels/vector_cuda.h"

namespace qpipe::cuda {

namespace {

// cuBLAS 13 has one kernel for grouped products of bf16: tiles of 128 × 64 outputs, each summed by
// one block over the whole of k in order, eight elements an access, bf16 results. So a product's
// bits are its own, and what those accesses or results don't fit goes by linear().
bool fits_group(const Product& p) {
  const auto aligned = [](const auto& m) {
    return aligned16(m.data) && m.cols % vector_elements == 0 && m.stride % vector_elements == 0;
  };
  return p.y.dtype == DType::bf16 && aligned(p.x) && aligned(p.weight) && aligned(p.y) &&
         (p.bias.empty() || aligned16(p.bias.data));
}

// What one launch takes along as its parameters: nothing is copied from the host.
constexpr int products_per_launch = 64;

struct Addresses {
  const void* weight[products_per_launch];
  const void* x[products_per_launch];
  void* y[products_per_launch];
};

__global__ __launch_bounds__(products_per_launch) void write_addresses(Addresses from, int count,
                                                                       const void** weight,
                                                                       const void** x, void** y) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= count) return;
  weight[i] = from.weight[i];
  x[i] = from.x[i];
  y[i] = from.y[i];
}

struct Biases {
  const __nv_bfloat16* bias[products_per_launch];
  __nv_bfloat16* y[products_per_launch];
  std::int64_t rows[products_per_launch];
  std::int64_t cols[products_per_launch];
  std::int64_t stride[products_per_launch];
};

// y[r, :] = bias for each product, blockIdx.z.
__global__ __launch_bounds__(row_threads) void write_biases_kernel(Biases b) {
  const unsigned p = blockIdx.z;
  const std::int64_t c = first_column(vector_elements);
  if (c >= b.cols[p]) return;
  float value[vector_elements];
  load(b.bias[p] + c, value);
  for (std::int64_t r = blockIdx.y; r < b.rows[p]; r += gridDim.y)
    store(value, b.y[p] + r * b.stride[p] + c);
}

// operation(first, count) for products in portions of one launch.
template <class Operation>
void in_portions(std::size_t products, Operation operation) {
  for (std::size_t first = 0; first < products; first += products_per_launch)
    operation(first, std::min<std::size_t>(products - first, products_per_launch));
}

void write_biases(const std::vector<Product>& products, Stream& stream) {
  in_portions(products.size(), [&](std::size_t first, std::size_t count) {
    Biases b{};
    std::int64_t most_rows = 1;
    std::int64_t most_cols = 1;
    for (std::size_t i = 0; i < count; ++i) {
      const Product& p = products[first + i];
      b.bias[i] = static_cast<const __nv_bfloat16*>(p.bias.data);
      b.y[i] = static_cast<__nv_bfloat16*>(p.y.data);
      b.rows[i] = p.y.rows;
      b.cols[i] = p.y.cols;
      b.stride[i] = p.y.stride;
      most_rows = std::max(most_rows, p.y.rows);
      most_cols = std::max(most_cols, p.y.cols);
    }
    dim3 grid = row_grid(std::min<std::int64_t>(most_rows, 1024), most_cols, vector_elements);
    grid.z = static_cast<unsigned>(count);
    write_biases_kernel<<<grid, row_threads, 0, stream.cuda().stream>>>(b);
    check_launch();
  });
}

}  // namespace

void linears(const std::vector<Product>& products, Stream& stream) {
  std::vector<Product> grouped;
  std::vector<Product> with_bias;
  for (const Product& p : products) {
    if (p.y.size() == 0) continue;
    if (!fits_group(p)) {
      cuda::linear(p.x, p.weight, p.bias, p.y, stream);
      continue;
    }
    grouped.push_back(p);
    if (!p.bias.empty()) with_bias.push_back(p);
  }
  if (grouped.empty()) return;
  if (has_linears_wgmma(stream)) return linears_wgmma(grouped, stream);

  // y starts as the bias, which bf16 holds exactly; the product then joins it before the one
  // rounding.
  write_biases(with_bias, stream);

  const std::size_t count = grouped.size();
  const Buffer memory(3 * count * sizeof(void*), stream);
  auto** weight = static_cast<const void**>(memory.data());
  const void** x = weight + count;
  auto** y = static_cast<void**>(memory.data()) + 2 * count;
  in_portions(count, [&](std::size_t first, std::size_t portion) {
    Addresses addresses{};
    for (std::size_t i = 0; i < portion; ++i) {
      addresses.weight[i] = grouped[first + i].weight.data;
      addresses.x[i] = grouped[first + i].x.data;
      addresses.y[i] = grouped[first + i].y.data;
    }
    write_addresses<<<1, products_per_launch, 0, stream.cuda().stream>>>(
        addresses, static_cast<int>(portion), weight + first, x + first, y + first);
    check_launch();
  });

  // Row-major [r, c] is column-major [c, r], so cuBLAS computes yᵀ = W xᵀ. Each product is a group.
  const std::vector<cublasOperation_t> transposed(count, CUBLAS_OP_T);
  const std::vector<cublasOperation_t> as_stored(count, CUBLAS_OP_N);
  const std::vector<std::int64_t> ones(count, 1);
  const std::vector<float> alpha(count, 1.0f);
  std::vector<std::int64_t> out, rows, in, weight_stride, x_stride, y_stride;
  std::vector<float> beta;
  for (const Product& p : grouped) {
    out.push_back(p.y.cols);
    rows.push_back(p.y.rows);
    in.push_back(p.x.cols);
    weight_stride.push_back(p.weight.stride);
    x_stride.push_back(p.x.stride);
    y_stride.push_back(p.y.stride);
    beta.push_back(p.bias.empty() ? 0.0f : 1.0f);
  }
  check(cublasGemmGroupedBatchedEx_64(
      stream.cuda().cublas(), transposed.data(), as_stored.data(), out.data(), rows.data(),
      in.data(), alpha.data(), weight, CUDA_R_16BF, weight_stride.data(), x, CUDA_R_16BF,
      x_stride.data(), beta.data(), y, CUDA_R_16BF, y_stride.data(),
      static_cast<std::int64_t>(count), ones.data(), CUBLAS_COMPUTE_32F));
}

}  // namespace qpipe::cuda
