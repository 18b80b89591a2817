#include "pipeline/data/tokens_on_ranks.h"

#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "pipeline/files/agree.h"

namespace qpipe {

namespace {

Tokens load_on_root(const std::function<Tokens()>& load, Comm& comm) {
  Tokens tokens;
  on_root(comm, [&] { tokens = load(); });
  const nlohmann::json header{{"samples", tokens.samples},
                              {"seqlen", tokens.seqlen},
                              {"source", printable(tokens.source)},
                              {"hash", tokens.hash}};
  const nlohmann::json received = nlohmann::json::parse(comm.broadcast(header.dump(), 0));
  const std::string bytes =
      comm.broadcast(std::string(reinterpret_cast<const char*>(tokens.ids.data()),
                                 tokens.ids.size() * sizeof(std::int32_t)),
                     0);
  tokens.samples = received.at("samples");
  tokens.seqlen = received.at("seqlen");
  tokens.source = received.at("source");
  tokens.hash = received.at("hash");
  tokens.ids.resize(bytes.size() / sizeof(std::int32_t));
  std::memcpy(tokens.ids.data(), bytes.data(), bytes.size());
  return tokens;
}

}  // namespace

Tokens load_tokens_on_all_ranks(const DatasetRequest& request, Comm& comm) {
  return load_on_root([&] { return load_tokens(request); }, comm);
}

Tokens load_mix_on_all_ranks(const std::vector<MixPart>& parts, std::int64_t samples, Comm& comm) {
  return load_on_root([&] { return load_mix(parts, samples); }, comm);
}

}  // namespace qpipe
