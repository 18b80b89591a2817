// Results that go where a user says: a file, or what stands there already.
#pragma once

#include <filesystem>
#include <string>

namespace qpipe {

// Writes `text` as a whole file in place of an older one (as write_text_file; a link keeps leading
// to it), or through to a FIFO that somebody reads, a terminal, a device or this process's own
// output (/dev/stdout). Throws UserError: io, or cannot_create for a folder, a socket, or a FIFO
// that nobody reads.
void write_user_output(const std::filesystem::path& path, const std::string& text);

// Throws UserError(cannot_create) unless the folder, or the nearest one above it that is there, can
// be written. `key` names the option that gives it.
void check_writable(const std::filesystem::path& folder, const std::string& key);

// Throws UserError(cannot_create) where write_user_output could not write: before the work is done.
void check_user_output(const std::filesystem::path& path, const std::string& key);

// For results that cannot be streamed: the regular file that the path leads to, there or not yet.
// Throws UserError(cannot_create) for everything else.
std::filesystem::path user_output_file(const std::filesystem::path& path);

}  // namespace qpipe
