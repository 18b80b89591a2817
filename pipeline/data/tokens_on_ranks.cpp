#include "pipeline/data/tokens_on_ranks.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "pipeline/files/error.h"

namespace qpipe {

void on_root(Comm& comm, const std::function<void()>& work) {
  std::string fault;
  auto code = ExitCode::software;
  if (comm.root()) {
    try {
      work();
    } catch (const UserError& error) {
      fault = error.what();
      code = error.code;
    } catch (const std::exception& error) {
      fault = error.what();
    }
  }
  const std::string outcome =
      comm.broadcast(fault.empty() ? "" : std::to_string(static_cast<int>(code)) + " " + fault, 0);
  if (outcome.empty()) return;
  const std::size_t space = outcome.find(' ');
  throw UserError(static_cast<ExitCode>(std::stoi(outcome.substr(0, space))),
                  outcome.substr(space + 1));
}

Tokens load_tokens_on_all_ranks(const DatasetRequest& request, Comm& comm) {
  Tokens tokens;
  on_root(comm, [&] { tokens = load_tokens(request); });
  const nlohmann::json header{{"samples", tokens.samples},
                              {"seqlen", tokens.seqlen},
                              {"source", tokens.source},
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

}  // namespace qpipe
