// Views of row-major matrices. They own nothing; every shape is in elements.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels/dtype.h"

namespace qpipe {

// A matrix of a type known at compile time; element (r, c) is data[r * stride + c].
template <class T>
struct Matrix {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  Matrix() = default;
  Matrix(T* pointer, std::int64_t row_count, std::int64_t col_count)
      : data(pointer), rows(row_count), cols(col_count), stride(col_count) {}
  Matrix(T* pointer, std::int64_t row_count, std::int64_t col_count, std::int64_t row_stride)
      : data(pointer), rows(row_count), cols(col_count), stride(row_stride) {}

  T& operator()(std::int64_t row, std::int64_t col) const { return data[row * stride + col]; }
  T* row(std::int64_t index) const { return data + index * stride; }
  Matrix row_range(std::int64_t begin, std::int64_t count) const {
    return {row(begin), count, cols, stride};
  }
  Matrix col_range(std::int64_t begin, std::int64_t count) const {
    return {data + begin, rows, count, stride};
  }
  std::int64_t size() const { return rows * cols; }
  bool empty() const { return data == nullptr; }
  bool contiguous() const { return stride == cols; }
  operator Matrix<const T>() const { return {data, rows, cols, stride}; }
};

// A matrix whose element type is known at run time: weights as the file has them, activations in
// the backend's compute type (float32 on the CPU, bfloat16 on CUDA).
template <class Void>
struct AnyMatrix {
  Void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  AnyMatrix() = default;
  AnyMatrix(Void* pointer, DType type, std::int64_t row_count, std::int64_t col_count)
      : data(pointer), dtype(type), rows(row_count), cols(col_count), stride(col_count) {}
  AnyMatrix(Void* pointer, DType type, std::int64_t row_count, std::int64_t col_count,
            std::int64_t row_stride)
      : data(pointer), dtype(type), rows(row_count), cols(col_count), stride(row_stride) {}
  template <class T>
  AnyMatrix(Matrix<T> matrix)
      : data(matrix.data),
        dtype(dtype_of<std::remove_const_t<T>>),
        rows(matrix.rows),
        cols(matrix.cols),
        stride(matrix.stride) {}

  AnyMatrix row_range(std::int64_t begin, std::int64_t count) const {
    return {at(begin, 0), dtype, count, cols, stride};
  }
  AnyMatrix col_range(std::int64_t begin, std::int64_t count) const {
    return {at(0, begin), dtype, rows, count, stride};
  }
  // The memory from element `first` on, as a matrix without gaps.
  AnyMatrix part(std::int64_t first, std::int64_t row_count, std::int64_t col_count) const {
    return {at(0, first), dtype, row_count, col_count};
  }
  std::int64_t size() const { return rows * cols; }
  std::int64_t bytes() const { return size() * static_cast<std::int64_t>(size_of(dtype)); }
  bool empty() const { return data == nullptr; }
  bool contiguous() const { return stride == cols; }
  operator AnyMatrix<const Void>() const { return {data, dtype, rows, cols, stride}; }

  // The typed view; throws std::invalid_argument when T is not the element type.
  template <class T>
  Matrix<T> as() const {
    if (dtype_of<std::remove_const_t<T>> != dtype)
      throw std::invalid_argument("tensor is " + std::string(name_of(dtype)) + ", not " +
                                  std::string(name_of(dtype_of<std::remove_const_t<T>>)));
    return {static_cast<T*>(data), rows, cols, stride};
  }

 private:
  Void* at(std::int64_t row, std::int64_t col) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const unsigned char, unsigned char>;
    return static_cast<Byte*>(data) +
           (row * stride + col) * static_cast<std::int64_t>(size_of(dtype));
  }
};

using Tensor = AnyMatrix<void>;
using ConstTensor = AnyMatrix<const void>;

// Throws std::invalid_argument with the operation's name; for argument checks in launchers.
inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace qpipe
