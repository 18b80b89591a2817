// `qpipe quantize MODEL -o FOLDER …`: a run without a configuration file.
#pragma once

#include <string>
#include <vector>

#include "pipeline/options/options.h"

namespace CLI {
class App;
}

namespace qpipe {

// What was said behind `quantize`. Outlives the parsing.
class QuantizeWords {
 public:
  void add_to(CLI::App& command);
  bool dry_run() const { return dry_run_; }
  // Throws UserError as load_options.
  Options options() const;

 private:
  void add(CLI::App& command, const char* names, const std::string& key,
           const std::string& meaning);
  void add_flag(CLI::App& command, const char* names, const std::string& key, const char* value,
                const std::string& meaning);

  std::vector<std::string> sets_;  // of options with a name of their own
  std::vector<std::string> sets_given_;
  std::string model_;
  std::string output_;
  std::string data_;
  std::string eval_;
  bool dry_run_ = false;
  bool resume_ = false;
};

}  // namespace qpipe
