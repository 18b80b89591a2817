// What the source's model card says that the output's card takes over.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace qpipe {

// Empty where the card does not say it, or says it in a way that is not plain.
struct SourceCard {
  std::string license;       // "apache-2.0"; "other" has a name and a link
  std::string license_name;  // "llama3.1"
  std::string license_link;  // an address, or a file of the source
  std::string pipeline_tag;
  std::vector<std::string> languages;  // "en", "multilingual"
};

// Of README.md's front matter: single lines, and lists as YAML writes them in either way. A card
// that cannot be read says nothing.
SourceCard read_source_card(const std::filesystem::path& folder);

}  // namespace qpipe
