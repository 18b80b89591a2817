#include "pipeline/commands/compare_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace qpipe {

namespace {

using Cells = std::vector<std::string>;

const Cells header{"method",      "perplexity", "increase", "size GB",
                   "bits/weight", "time s",     "loaded by"};

bool is_number_column(std::size_t column) { return column > 0 && column + 1 < header.size(); }

std::string gigabytes(std::int64_t bytes) {
  return fmt::format("{:.3f}", static_cast<double>(bytes) * 1e-9);
}

std::string percent(double fraction) {
  return std::isfinite(fraction) ? fmt::format("{:+.2f} %", 100.0 * fraction) : "no number";
}

std::string loading(const CompareRow& row) {
  Cells names;
  for (const Loader& loader : row.loaders)
    if (loader.loads) names.push_back(loader.name);
  return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

const Loader* find_loader(const CompareRow& row, const std::string& name) {
  const auto found = std::find_if(row.loaders.begin(), row.loaders.end(),
                                  [&](const Loader& l) { return l.name == name; });
  return found == row.loaders.end() ? nullptr : &*found;
}

bool vllm_serves(const CompareRow& row) {
  const Loader* vllm = find_loader(row, "vLLM");
  return vllm != nullptr && vllm->loads;
}

std::vector<Cells> all_cells(const Comparison& c) {
  std::vector<Cells> cells{{"original", fmt::format("{:.4f}", c.original_perplexity), "",
                            gigabytes(c.original_bytes),
                            fmt::format("{:.3f}", c.original_bits_per_weight), "", ""}};
  for (const CompareRow& row : c.rows)
    cells.push_back({row.label, fmt::format("{:.4f}", row.perplexity), percent(increase(c, row)),
                     gigabytes(row.bytes), fmt::format("{:.3f}", row.bits_per_weight),
                     fmt::format("{:.1f}", row.seconds), loading(row)});
  return cells;
}

template <class Predicate>
std::string labels_of(const std::vector<CompareRow>& rows, Predicate predicate) {
  Cells labels;
  for (const CompareRow& row : rows)
    if (predicate(row)) labels.push_back(row.label);
  return fmt::format("{}", fmt::join(labels, ", "));
}

// By perplexity; what is no number comes last; equal ones stay in the order of --methods.
std::vector<CompareRow> best_first(const std::vector<CompareRow>& rows, int bits) {
  std::vector<CompareRow> sorted;
  std::copy_if(rows.begin(), rows.end(), std::back_inserter(sorted),
               [&](const CompareRow& row) { return row.bits == bits; });
  const auto rank = [](const CompareRow& row) {
    return std::isnan(row.perplexity) ? HUGE_VAL : row.perplexity;
  };
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](const CompareRow& a, const CompareRow& b) { return rank(a) < rank(b); });
  return sorted;
}

// "4 bits, best first: awq (+1.20 %), rtn (+3.00 %). The best of them that vLLM serves: awq."
std::string order_at(const Comparison& c, int bits) {
  const std::vector<CompareRow> sorted = best_first(c.rows, bits);
  Cells entries;
  for (const CompareRow& row : sorted)
    entries.push_back(fmt::format("{} ({})", row.label, percent(increase(c, row))));
  const auto served = std::find_if(sorted.begin(), sorted.end(), vllm_serves);
  std::string advice = "vLLM serves none of them.";
  if (served != sorted.end()) advice = "The best of them that vLLM serves: " + served->label + ".";
  if (served != sorted.end() && !std::isfinite(served->perplexity))
    advice = "vLLM serves none of them with a finite perplexity.";
  return fmt::format("{} bits, best first: {}. {}", bits, fmt::join(entries, ", "), advice);
}

}  // namespace

double increase(const Comparison& comparison, const CompareRow& row) {
  return row.perplexity / comparison.original_perplexity - 1.0;
}

std::vector<std::string> guidance(const Comparison& c) {
  std::vector<std::string> lines;
  std::set<int> widths;
  for (const CompareRow& row : c.rows) widths.insert(row.bits);
  lines.reserve(widths.size());
  for (const int bits : widths) lines.push_back(order_at(c, bits));
  if (c.rows.size() > 1)
    lines.emplace_back(
        "Close figures may change places on other text; a larger evaluate.samples tells more.");

  const std::string calibrated =
      labels_of(c.rows, [](const CompareRow& row) { return row.calibrated; });
  const std::string direct =
      labels_of(c.rows, [](const CompareRow& row) { return !row.calibrated; });
  if (!calibrated.empty())
    lines.push_back(fmt::format("Calibrated: {}; on {}. Text like the model's own use serves best.",
                                calibrated, c.calibration));
  if (!direct.empty())
    lines.push_back(fmt::format("Without calibration, from the weights alone: {}.", direct));

  const std::string served = labels_of(c.rows, vllm_serves);
  if (!served.empty())
    lines.push_back(fmt::format("Served by vLLM as it is (`vllm serve FOLDER`): {}.", served));
  for (const CompareRow& row : c.rows) {
    const Loader* vllm = find_loader(row, "vLLM");
    if (vllm != nullptr && !vllm->loads)
      lines.push_back(fmt::format("Not served by vLLM: {}: {}.", row.label, vllm->why));
  }
  const std::string rounds =
      labels_of(c.rows, [](const CompareRow& row) { return row.rounds_activations; });
  if (!rounds.empty())
    lines.push_back(
        fmt::format("The perplexities are those of the weights alone; for {} the loaders also "
                    "round the inputs of each linear to 8 bits.",
                    rounds));
  return lines;
}

namespace {

std::string heading(const Comparison& c) {
  return fmt::format(
      "Perplexity on {}, each window alone; lower is better. Time without evaluations, {} rank{} "
      "on {}.",
      c.evaluation, c.ranks, c.ranks == 1 ? "" : "s", c.device);
}

}  // namespace

std::string comparison_text(const Comparison& c) {
  std::vector<Cells> lines = all_cells(c);
  lines.insert(lines.begin(), header);
  std::vector<std::size_t> widths(header.size(), 0);
  for (const Cells& cells : lines)
    for (std::size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  std::string text = c.model + "\n" + heading(c) + "\n\n";
  for (const Cells& cells : lines) {
    std::string line;
    for (std::size_t i = 0; i < cells.size(); ++i)
      line += is_number_column(i) ? fmt::format("{:>{}}  ", cells[i], widths[i])
                                  : fmt::format("{:<{}}  ", cells[i], widths[i]);
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  text += "\n";
  for (const std::string& line : guidance(c)) text += line + "\n";
  return text;
}

std::string comparison_markdown(const Comparison& c) {
  std::string text = "# " + c.model + "\n\n" + heading(c) + "\n\n";
  const auto add = [&](const Cells& cells) {
    text += fmt::format("| {} |\n", fmt::join(cells, " | "));
  };
  add(header);
  Cells rule;
  for (std::size_t i = 0; i < header.size(); ++i)
    rule.emplace_back(is_number_column(i) ? "---:" : "---");
  add(rule);
  for (const Cells& cells : all_cells(c)) add(cells);
  text += "\n";
  for (const std::string& line : guidance(c)) text += "- " + line + "\n";
  return text;
}

nlohmann::json comparison_json(const Comparison& c) {
  nlohmann::json rows = nlohmann::json::array();
  for (const CompareRow& row : c.rows) {
    nlohmann::json loaders = nlohmann::json::array();
    for (const Loader& loader : row.loaders)
      loaders.push_back({{"name", loader.name}, {"loads", loader.loads}, {"why", loader.why}});
    rows.push_back({{"label", row.label},
                    {"method", row.method},
                    {"folder", row.folder},
                    {"format", row.format},
                    {"bits", row.bits},
                    {"calibrated", row.calibrated},
                    {"rounds_activations", row.rounds_activations},
                    {"perplexity", row.perplexity},
                    {"perplexity_increase", increase(c, row)},
                    {"bytes", row.bytes},
                    {"bits_per_weight", row.bits_per_weight},
                    {"seconds", row.seconds},
                    {"loaders", loaders}});
  }
  return {{"model", c.model},
          {"evaluation", c.evaluation},
          {"calibration", c.calibration},
          {"device", c.device},
          {"ranks", c.ranks},
          {"original",
           {{"perplexity", c.original_perplexity},
            {"bytes", c.original_bytes},
            {"bits_per_weight", c.original_bits_per_weight}}},
          {"rows", rows},
          {"guidance", guidance(c)}};
}

}  // namespace qpipe
