// The table of `qpipe compare`: measured rows to text, Markdown and JSON, with what a newcomer
// needs to choose. No files, no MPI.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/output/loaders.h"

namespace qpipe {

// One quantized model.
struct CompareRow {
  std::string label;  // as in --methods: "gptq:mse=2.4"
  std::string method;
  std::string folder;
  std::string format;  // of the checkpoint
  int bits = 0;        // of a code, without scales
  bool calibrated = false;
  bool rounds_activations = false;  // loaders round the inputs of the linears, too
  double perplexity = 0.0;
  std::int64_t bytes = 0;        // of all tensors
  double bits_per_weight = 0.0;  // of the quantized linears, scales and zeros included
  double seconds = 0.0;  // from reading the model to the written folder, without evaluations
  std::vector<Loader> loaders;
};

struct Comparison {
  std::string model;
  std::string evaluation;   // what the perplexity was measured on
  std::string calibration;  // what the calibrated methods saw
  std::string device;
  int ranks = 1;
  double original_perplexity = 0.0;
  std::int64_t original_bytes = 0;
  double original_bits_per_weight = 0.0;
  std::vector<CompareRow> rows;  // in the order of --methods
};

// Perplexity over the original's, less 1: 0.02 is 2 % more.
double increase(const Comparison& comparison, const CompareRow& row);

// Sentences: which methods calibrate, who serves what, the order of quality at each width as this
// table has it, what it leaves out.
std::vector<std::string> guidance(const Comparison& comparison);

std::string comparison_text(const Comparison& comparison);
std::string comparison_markdown(const Comparison& comparison);
nlohmann::json comparison_json(const Comparison& comparison);

}  // namespace qpipe
