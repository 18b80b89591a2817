#include "pipeline/options/hub_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <string_view>

#include "pipeline/files/error.h"

namespace qpipe {

namespace {

bool is_plain(std::string_view text, std::string_view more) {
  return !text.empty() && text.front() != '.' && text.front() != '-' &&
         std::all_of(text.begin(), text.end(), [&](char c) {
           return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
                  more.find(c) != std::string_view::npos;
         });
}

}  // namespace

bool is_hub_name(const std::string& text) {
  constexpr std::size_t longest = 200;
  const std::size_t slash = text.find('/');
  return slash != std::string::npos && text.size() <= longest &&
         is_plain(text.substr(0, slash), "-._") && is_plain(text.substr(slash + 1), "-._");
}

std::optional<HubModel> hub_model(const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(std::filesystem::symlink_status(path, error))) return std::nullopt;
  const std::size_t at = path.find('@');
  HubModel model{path.substr(0, at), at == std::string::npos ? "" : path.substr(at + 1)};
  const bool named = at == std::string::npos || is_plain(model.revision, "-._/");
  return is_hub_name(model.repository) && named ? std::optional(model) : std::nullopt;
}

std::optional<HubData> hub_data(const std::string& text, const std::string& where) {
  constexpr std::string_view prefix = "hf:";
  if (!text.starts_with(prefix)) return std::nullopt;
  const std::size_t colon = text.rfind(':');
  HubData data;
  if (colon >= prefix.size()) {
    data.repository = text.substr(prefix.size(), colon - prefix.size());
    data.split = text.substr(colon + 1);
    const std::size_t slash = data.repository.find('/', data.repository.find('/') + 1);
    if (slash != std::string::npos) {
      data.config = data.repository.substr(slash + 1);
      data.repository.resize(slash);
      if (!is_plain(data.config, "-._")) data.split.clear();
    }
  }
  if (!is_hub_name(data.repository) || !is_plain(data.split, "-._"))
    throw UserError(ExitCode::config,
                    fmt::format("{}{}: write data of the hub as hf:ORG/NAME:SPLIT or "
                                "hf:ORG/NAME/CONFIG:SPLIT, such as "
                                "hf:Salesforce/wikitext/wikitext-2-raw-v1:train",
                                where, text));
  return data;
}

}  // namespace qpipe
