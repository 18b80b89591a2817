// Values in files of the run folder, with a hash: what is damaged in any bit is as good as absent.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace qpipe {

// The text of the value's file.
std::string sealed(const nlohmann::json& value);

// Throws std::exception when the text is not to the bit what sealed() wrote.
nlohmann::json unsealed(const std::string& text);

// Whether a file of this text may be one that sealed() wrote, damaged or not: its beginning or its
// end is as it would be. Somebody else's file is not.
bool looks_sealed(const std::string& text);

// Of a file; null where there is none that can be believed: absent, damaged, a link, a FIFO.
nlohmann::json read_sealed(const std::filesystem::path& path);

}  // namespace qpipe
