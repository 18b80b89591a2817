// Channels that lie in slices of a wider matrix: heads of one kind in a fused projection.
#pragma once

#include <cstdint>

namespace qpipe {

// Slices of a row, head h at columns h·stride ... h·stride + head_dim.
struct HeadSlices {
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t stride = 0;  // ≥ head_dim; larger where something lies between (q k v of each head)

  std::int64_t width() const { return (heads - 1) * stride + head_dim; }
  std::int64_t channels() const { return heads * head_dim; }
  // Of channel c, counted over the slices one behind the other.
  std::int64_t column(std::int64_t c) const { return c / head_dim * stride + c % head_dim; }
  // Whether there are slices, apart from each other, in rows of so many columns.
  bool lie_in(std::int64_t columns) const {
    return heads > 0 && head_dim > 0 && stride >= head_dim && width() <= columns;
  }
  bool operator==(const HeadSlices&) const = default;
};

}  // namespace qpipe
