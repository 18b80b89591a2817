#include "kernels/linears.h"

#include "kernels/linear.h"

namespace qpipe {

namespace {

void check_arguments(const std::vector<Product>& products, const Stream& stream) {
  const DType compute = stream.compute_dtype();
  for (const auto& [x, weight, bias, y] : products) {
    require(x.dtype == compute && weight.dtype == compute,
            "linears: x and weight must have the compute type");
    require(y.dtype == products.front().y.dtype && (y.dtype == compute || y.dtype == DType::f32),
            "linears: all y must have the compute type, or all be float32");
    require(x.cols > 0 && weight.cols == x.cols,
            "linears: weight must be [out, in] with the in of x");
    require(y.rows == x.rows && y.cols == weight.rows, "linears: y must be [rows, out]");
    require(bias.empty() || (bias.dtype == compute && bias.rows == 1 && bias.cols == weight.rows),
            "linears: bias must be [1, out] of the compute type");
  }
}

}  // namespace

void linears(const std::vector<Product>& products, Stream& stream) {
  check_arguments(products, stream);
  if constexpr (has_cuda)
    if (stream.on_cuda()) return cuda::linears(products, stream);
  for (const auto& [x, weight, bias, y] : products)
    if (y.size() > 0) linear(x, weight, bias, y, stream);
}

}  // namespace qpipe
