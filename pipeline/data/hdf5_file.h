// Token ids of an HDF5 file, read and written by a program of its own (pipeline/data/hdf5_program).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace qpipe {

struct Hdf5Ids {
  std::vector<std::int64_t> sizes;  // of the whole dataset
  // The first `samples` rows and `seqlen` columns, as they were asked for; none where the dataset
  // has another rank than 2 or is smaller.
  std::vector<std::int32_t> ids;
};

// samples, seqlen >= 0; 0: all. Throws UserError(data): what is no HDF5 file or is damaged, makes
// libhdf5 crash or takes it too long, reads other files (links, external storage, virtual
// datasets), is packed by a plugin, has impossible sizes, or ids that an int32 does not hold.
Hdf5Ids read_hdf5(const std::filesystem::path& path, const std::string& dataset,
                  std::int64_t samples, std::int64_t seqlen);

}  // namespace qpipe
