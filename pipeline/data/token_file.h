// Token ids from HDF5 and safetensors files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "pipeline/data/dataset.h"

namespace qpipe {

// .h5, .hdf5, .safetensors
bool is_token_file(const std::filesystem::path& path);

// The first `samples` rows and the first `seqlen` columns of an integer dataset or tensor [rows,
// columns]; 0: all. Throws UserError: fewer than asked, another shape or type, ids that an int32
// does not hold. `hash` stays empty.
Tokens read_token_file(const std::filesystem::path& path, const std::string& dataset,
                       std::int64_t samples, std::int64_t seqlen);

}  // namespace qpipe
