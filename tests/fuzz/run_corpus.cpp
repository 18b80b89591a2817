// A harness without libFuzzer: NAME_fuzz [--mutations N] [--seed S] [--slow MS] FILE|FOLDER... runs
// every file, then N structured mutations of files of at most 100 kB, and says how many inputs it
// ran, the slowest one, and how many are too slow. A fault ends it by SIGABRT; the input is
// then in the file that the variable QPIPE_FUZZ_INPUT names, or is named on stderr.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <random>

#include "tests/fuzz/fuzz.h"

namespace {

namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Tally {
  std::int64_t inputs = 0;
  std::int64_t too_slow = 0;
  double slowest_ms = 0.0;
  double slow_ms = 2000.0;
};

// The input is on the disk before it runs, so that it is there after a crash.
void run(const std::string& input, const char* keep, Tally& tally) {
  if (keep != nullptr) std::ofstream(keep, std::ios::binary) << input;
  const std::clock_t begin = std::clock();  // of this process, however busy the machine is
  qpipe::fuzz::expect_answer(input);
  const double took_ms = 1000.0 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  ++tally.inputs;
  tally.slowest_ms = std::max(tally.slowest_ms, took_ms);
  if (took_ms > tally.slow_ms) ++tally.too_slow;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<fs::path> files;
  std::int64_t mutations = 0;
  std::uint64_t seed = 1;
  Tally tally;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--mutations" && i + 1 < argc)
      mutations = std::atoll(argv[++i]);
    else if (word == "--seed" && i + 1 < argc)
      seed = static_cast<std::uint64_t>(std::atoll(argv[++i]));
    else if (word == "--slow" && i + 1 < argc)
      tally.slow_ms = std::atof(argv[++i]);
    else if (fs::is_directory(word))
      for (const auto& entry : fs::recursive_directory_iterator(word)) {
        if (entry.is_regular_file()) files.push_back(entry.path());
      }
    else
      files.emplace_back(word);
  }
  std::sort(files.begin(), files.end());
  if (files.empty()) {
    std::fprintf(stderr, "no input\n");
    return 2;
  }
  const char* keep = std::getenv("QPIPE_FUZZ_INPUT");
  std::vector<std::string> seeds;
  for (const fs::path& file : files) {
    std::string input = read(file);
    if (mutations == 0) std::fprintf(stderr, "%s\n", file.c_str());
    run(input, keep, tally);
    if (input.size() <= 100'000) seeds.push_back(std::move(input));
  }
  std::mt19937_64 random(seed);
  for (std::int64_t i = 0; i < mutations && !seeds.empty(); ++i) {
    const std::string& base = seeds[random() % seeds.size()];
    run(qpipe::fuzz::mutate_structure(base, random()), keep, tally);
  }
  std::printf(
      "%lld inputs, %lld of them mutated; the slowest took %.1f ms, %lld more than %.0f ms\n",
      static_cast<long long>(tally.inputs),
      static_cast<long long>(tally.inputs) - static_cast<long long>(files.size()), tally.slowest_ms,
      static_cast<long long>(tally.too_slow), tally.slow_ms);
  return tally.too_slow == 0 ? 0 : 1;
}
