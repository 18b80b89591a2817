// Which linears quantization_config leaves unquantized, as each format's loaders match names.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/files/pattern.h"
#include "pipeline/model/read_back.h"

namespace qpipe {

class SkipRules {
 public:
  SkipRules(StoredFormat format, const nlohmann::json& quantization);

  // module: a linear's full name.
  bool skip(const std::string& module) const;

  // One line for each expression that cannot be matched here, and counts as one that matches
  // nothing.
  std::vector<std::string> faults(const std::string& where) const;

 private:
  // A name, or an expression for the beginning of names.
  struct Rule {
    std::string name;
    const Pattern* pattern = nullptr;
    bool skips = true;  // of GPTQModel's `dynamic`: "-:"
    bool matches(const std::string& module) const;
  };
  void add_list(const nlohmann::json& list, bool with_expressions, std::vector<Rule>& rules);
  void add_expression(const std::string& text, bool skips, std::vector<Rule>& rules);

  StoredFormat format_;
  std::map<std::string, Pattern> patterns_;  // text → expression; compiled once
  std::vector<std::string> faults_;
  std::vector<Rule> skipped_;  // whole names or, by format, parts of names
  std::vector<Rule> dynamic_;  // GPTQModel's: the first that matches counts
  std::vector<Rule> targets_;  // what is quantized, where it is listed
  bool all_are_targets_ = true;
};

}  // namespace qpipe
