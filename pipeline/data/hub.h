// The Hugging Face hub, by its own library in the Python helper: HF_HOME, HF_TOKEN, HF_ENDPOINT,
// HF_HUB_OFFLINE and the rest mean what they mean there. What is fetched lies in its cache, once
// for all that use it; what broke off goes on.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "pipeline/options/hub_names.h"

namespace qpipe {

enum class HubPart { whole, config };  // config: the .json files alone, for plans

// The snapshot's folder. Several ranks may ask at once: one of each machine fetches. Progress is
// told. Throws UserError: no such repository, gated, no network, offline and not
// there, a full disk; ExitCode::temporary when a stop signal came.
std::filesystem::path fetch_model(const HubModel& model, HubPart part);

// The first file of the split.
std::filesystem::path fetch_data(const HubData& data);

struct PushTarget {
  std::string repository;
  std::string revision;  // "": main
  bool is_private = false;
  bool create_pr = false;
};

// These files of the folder, in one commit; files that an earlier push brought and this one does
// not have go. Returns the address. Throws UserError as fetch_model, and where there is no token.
std::string push_files(const std::filesystem::path& folder, const std::vector<std::string>& names,
                       const PushTarget& target);

}  // namespace qpipe
