// Foreign text (names from a model's folder, names of data) as it may stand in a model card.
#pragma once

#include <string>

namespace qpipe {

// A YAML scalar in double quotes; whatever it holds, it adds no key.
std::string yaml_text(const std::string& text);

// Text of a heading, a sentence or a table's cell: no character of it is markup.
std::string markdown_text(const std::string& text);

// `text` in backticks, outside of tables.
std::string code_span(const std::string& text);

}  // namespace qpipe
