// qpipe CONFIG.toml with the places given on the command line instead of those of the plan, to
// measure what they cost:
//   bench_places HIDDEN,INPUT,WEIGHTS,PANEL,HESSIAN CONFIG.toml [--set section.key=value ...]
// HIDDEN, INPUT: device, host or disk; WEIGHTS: layer or step; PANEL: columns of the 64-bit Hessian
// sum, 0 for all; HESSIAN: device or host.
#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "launch/comm.h"
#include "pipeline/quantize.h"

namespace {

qpipe::Places parse(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');) words.push_back(word);
  const std::map<std::string, qpipe::Place> place{
      {"device", qpipe::Place::device}, {"host", qpipe::Place::host}, {"disk", qpipe::Place::disk}};
  if (words.size() != 5) throw std::runtime_error("places: HIDDEN,INPUT,WEIGHTS,PANEL,HESSIAN");
  return {place.at(words[0]),   place.at(words[1]), false, words[2] == "step",
          std::stoll(words[3]), words[4] == "host", {}};
}

}  // namespace

int main(int argc, char** argv) {
  qpipe::MpiSession session(argc, argv);
  try {
    if (argc < 3) throw std::runtime_error("bench_places PLACES CONFIG.toml [--set k=v ...]");
    std::vector<std::string> sets;
    for (int i = 3; i + 1 < argc; i += 2) sets.emplace_back(argv[i + 1]);
    const qpipe::RunReport report =
        qpipe::quantize(qpipe::load_options(argv[2], sets), false, std::nullopt, parse(argv[1]));
    fmt::print("places {}: peak {:.2f} GiB, total {:.1f} s\n", argv[1],
               static_cast<double>(report.device_peak_bytes) / (1 << 30), report.seconds.total);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    qpipe::abort_all_ranks(1);
  }
  return 0;
}
