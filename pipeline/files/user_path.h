// Paths as people write them.
#pragma once

#include <string>

namespace qpipe {

// `~` and `~/…` begin in $HOME; `//`, `/./`, and `/` or `/.` at the end say nothing and are left
// out (`./` at the beginning stays, and `..`, which may go through a link). "" stays "". Throws
// UserError(config) "WHERE: …" for
// `~user`, and where HOME is not set. where: the key or option that holds it.
std::string user_path(const std::string& text, const std::string& where);

// What stands beside a file or folder under its name with `ending`: "out" → "out.run".
std::string beside(const std::string& path, const std::string& ending);

}  // namespace qpipe
