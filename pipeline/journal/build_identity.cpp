#include "pipeline/journal/build_identity.h"

#include <algorithm>
#include <vector>

#include "kernels/library_versions.h"
#include "launch/nccl_version.h"
#include "pipeline/files/input_file.h"
#include "pipeline/files/xxh3.h"

namespace qpipe {

namespace {

std::string hash_of_program() {
  const InputFile program("/proc/self/exe");
  std::vector<char> piece(1 << 20);
  Xxh3 hash;
  for (std::int64_t at = 0; at < program.bytes();) {
    const std::int64_t count =
        std::min(program.bytes() - at, static_cast<std::int64_t>(piece.size()));
    program.read(piece.data(), count, at, "the program");
    hash.add(piece.data(), static_cast<std::size_t>(count));
    at += count;
  }
  return hash.hexadecimal();
}

}  // namespace

nlohmann::json build_identity(Backend backend) {
  nlohmann::json build{{"version", QPIPE_VERSION}, {"program", hash_of_program()}};
  for (const auto& [library, version] : library_versions(backend)) build[library] = version;
  if (backend == Backend::cuda) build["NCCL"] = nccl_version();
  return build;
}

}  // namespace qpipe
