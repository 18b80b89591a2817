// What stands beside the weights in the model's folder and goes into the output as it is.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace qpipe {

inline constexpr const char* templates_folder = "additional_chat_templates";

// Whether a loader reads a file of this name: tokenizer, processors, generation_config, chat
// templates, remote code.
bool is_needed_by_loaders(const std::string& name);

// Names of tokenizer, processors, generation_config, chat template and additional_chat_templates/,
// remote code (*.py), licence and the like; sorted. Not weights, config.json or README.md, hidden
// files, other folders, FIFOs and devices, and links that lead out of the model's folder, but for
// those into a hub's cache, or have names that are not UTF-8. What cannot be read is left out with
// a warning, or is a UserError(no_input) where loaders need it.
std::vector<std::string> auxiliary_files(const std::filesystem::path& model);

// Copies them. Rank 0 only.
void copy_auxiliary_files(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace qpipe
