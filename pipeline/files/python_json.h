// JSON as Python's json.loads reads it, as standard JSON.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace qpipe {

// What Python reads and RFC 8259 has not: NaN, Infinity and -Infinity, numbers beyond double
// (1e999, integers of any length), and escapes of half a surrogate pair. Files that Python wrote
// hold them, mostly in fields that nobody needs.
struct StandardJson {
  std::string text;  // empty: the original is standard in all of this
  // Where in `text` something longer than in the original stands, and by how many bytes: ascending.
  struct Longer {
    std::size_t at = 0;
    std::size_t bytes = 0;
  };
  std::vector<Longer> longer;

  // The place in the original of a place in `text`.
  std::size_t original_place(std::size_t place) const;
};

// Numbers that double does not hold become ["NaN"], ["Infinity"] or ["-Infinity"], which no one who
// wants a number or a text takes for one; half a pair becomes U+FFFD. All else, faults included,
// stays as it is. Linear in the text.
StandardJson standard_json(std::string_view text);

}  // namespace qpipe
