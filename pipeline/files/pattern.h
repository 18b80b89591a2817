// Regular expressions from a model's or a user's file: matched in time linear in the name, with
// bounded memory (RE2). What RE2 has no syntax for (backreferences, lookahead) is refused.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace qpipe {

inline constexpr std::size_t most_pattern_bytes = std::size_t{1} << 20;

// Where in a name a pattern has to be found.
enum class Anchor {
  anywhere,  // Python's re.search
  begin,  // Python's re.match. The pattern may begin with lookaheads, (?!A)B and (?=A)B: they are
          // matched on their own
};

class Pattern {
 public:
  // Throws UserError(config) with what pattern_fault says.
  explicit Pattern(const std::string& text, Anchor anchor);
  ~Pattern();
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;

  bool matches(std::string_view name) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Why the text is no pattern here, in one line; "" when it is one.
std::string pattern_fault(const std::string& text, Anchor anchor);

}  // namespace qpipe
