// Names of the Hugging Face hub in place of paths.
#pragma once

#include <optional>
#include <string>

namespace qpipe {

struct HubModel {
  std::string repository;  // "ORG/NAME"
  std::string revision;    // branch, tag or commit; "": main
};

// ORG/NAME or ORG/NAME@REVISION, unless there is such a path; nothing for all else.
std::optional<HubModel> hub_model(const std::string& path);

struct HubData {
  std::string repository;
  std::string config;  // "": any
  std::string split;   // "train"
};

// hf:ORG/NAME:SPLIT or hf:ORG/NAME/CONFIG:SPLIT. Nothing where the text does not begin with "hf:".
// Throws UserError(config) "WHERE…" for what is written otherwise.
std::optional<HubData> hub_data(const std::string& text, const std::string& where);

// "ORG/NAME", as the hub writes names.
bool is_hub_name(const std::string& text);

}  // namespace qpipe
