// Host vectors to contiguous device matrices and back.
#pragma once

#include <type_traits>
#include <vector>

#include "kernels/stream.h"

namespace qpipe {

// A contiguous device matrix on the host, row-major.
template <class T>
std::vector<std::remove_const_t<T>> download_matrix(Matrix<T> matrix, Stream& stream) {
  std::vector<std::remove_const_t<T>> values(static_cast<std::size_t>(matrix.size()));
  copy_to_host(values.data(), matrix.data, values.size() * sizeof(T), stream);
  return values;
}

template <class T>
Array<T> upload_matrix(const std::vector<T>& values, std::int64_t rows, std::int64_t cols,
                       Stream& stream) {
  Array<T> array(rows, cols, stream);
  copy_to_device(array.view.data, values.data(), values.size() * sizeof(T), stream);
  return array;
}

// [1, size]; without values an empty matrix.
template <class T>
Array<T> upload(const std::vector<T>& values, Stream& stream) {
  return values.empty()
             ? Array<T>()
             : upload_matrix(values, 1, static_cast<std::int64_t>(values.size()), stream);
}

}  // namespace qpipe
