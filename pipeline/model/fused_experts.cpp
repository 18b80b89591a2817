#include "pipeline/model/fused_experts.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <optional>
#include <string_view>
#include <utility>

namespace qpipe {

namespace {

using Json = nlohmann::json;

// What of an expert a stack holds.
enum class Content { gate_up, gate, up, down };
// matrix: [E, out, in] or [E, in, out]; vector: [E, out]; blocks, scales: MXFP4's of
// [E, out, in / 32, …].
enum class Piece { matrix, vector, blocks, scales };

struct Stack {
  std::string_view end;      // of the tensor's name
  std::string_view experts;  // in its place, before ".E.gate_proj"
  Content content;
  Piece piece;
};

constexpr std::array stacks = {
    Stack{".experts.gate_up_proj", ".experts", Content::gate_up, Piece::matrix},
    Stack{".experts.down_proj", ".experts", Content::down, Piece::matrix},
    Stack{".experts.gate_up_proj_bias", ".experts", Content::gate_up, Piece::vector},
    Stack{".experts.down_proj_bias", ".experts", Content::down, Piece::vector},
    Stack{".experts.gate_up_proj_blocks", ".experts", Content::gate_up, Piece::blocks},
    Stack{".experts.down_proj_blocks", ".experts", Content::down, Piece::blocks},
    Stack{".experts.gate_up_proj_scales", ".experts", Content::gate_up, Piece::scales},
    Stack{".experts.down_proj_scales", ".experts", Content::down, Piece::scales},
    Stack{".input_linear.weight", ".experts", Content::gate_up, Piece::matrix},
    Stack{".output_linear.weight", ".experts", Content::down, Piece::matrix},
    Stack{".moe.gate_proj.weight", ".moe.experts", Content::gate, Piece::matrix},
    Stack{".moe.up_proj.weight", ".moe.experts", Content::up, Piece::matrix},
    Stack{".moe.down_proj.weight", ".moe.experts", Content::down, Piece::matrix}};

// The matrix that a stack must have more than one axis for: shared MLPs of Granite have the same
// names and two axes.
std::size_t axes_of(Piece piece) {
  switch (piece) {
    case Piece::matrix:
    case Piece::scales: return 3;
    case Piece::vector: return 2;
    case Piece::blocks: return 4;
  }
  return 0;
}

const Json& text_part(const Json& config) {
  const auto text = config.find("text_config");
  return text != config.end() && text->is_object() ? *text : config;
}

std::string family_of(const Json& text) {
  const auto found = text.find("model_type");
  return found != text.end() && found->is_string() ? found->get<std::string>() : std::string();
}

std::int64_t hidden_of(const Json& text) {
  const auto found = text.find("hidden_size");
  return found != text.end() && found->is_number_integer() ? found->get<std::int64_t>() : 0;
}

// x W in place of x Wᵀ: the stacks lie [E, in, out].
bool is_input_first(const std::string& family) {
  return family == "gpt_oss" || family.starts_with("llama4") || family.starts_with("qwen3_vl_moe");
}

// Rows of gate and up take turns.
bool alternates(const std::string& family) { return family == "gpt_oss"; }

// One expert's matrix [out, in] in a stack, seen from its first element.
struct Lie {
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;  // elements of a row
  std::int64_t output_stride = 0;
  std::int64_t input_stride = 1;
};

// Of a stack's matrix [a, b]; nothing where neither way has `hidden` where it belongs.
std::optional<Lie> lie_of(const Stack& stack, const TensorInfo& info, std::int64_t hidden,
                          bool input_first) {
  const std::int64_t a = info.shape[1];
  if (stack.piece == Piece::vector) return Lie{a, 1, 1, 1};
  if (stack.piece == Piece::blocks) {
    const std::int64_t bytes = info.shape[2] * info.shape[3];
    return Lie{a, bytes, bytes, 1};
  }
  const std::int64_t b = info.shape[2];
  if (stack.piece == Piece::scales) return Lie{a, b, b, 1};
  const bool down = stack.content == Content::down;
  const bool rows_fit = (down ? a : b) == hidden;
  // Modules of linears, NAME.weight, have their outputs first.
  const bool columns_fit = (down ? b : a) == hidden && !stack.end.ends_with(".weight");
  if (!rows_fit && !columns_fit) return std::nullopt;
  if (columns_fit && (input_first || !rows_fit)) return Lie{b, a, 1, b};
  return Lie{a, b, b, 1};
}

std::string_view part_name(Piece piece) {
  switch (piece) {
    case Piece::matrix: return "weight";
    case Piece::vector: return "bias";
    case Piece::blocks: return "weight_packed";  // as compressed-tensors calls the same bytes
    case Piece::scales: return "weight_scale";
  }
  return {};
}

struct Part {
  std::string_view linear;
  std::int64_t first_row = 0;
  std::int64_t row_step = 1;
  std::int64_t rows = 0;
};

std::vector<Part> parts_of(Content content, std::int64_t outputs, bool alternating) {
  switch (content) {
    case Content::gate: return {{"gate_proj", 0, 1, outputs}};
    case Content::up: return {{"up_proj", 0, 1, outputs}};
    case Content::down: return {{"down_proj", 0, 1, outputs}};
    case Content::gate_up: break;
  }
  const std::int64_t half = outputs / 2;
  if (alternating) return {{"gate_proj", 0, 2, half}, {"up_proj", 1, 2, half}};
  return {{"gate_proj", 0, 1, half}, {"up_proj", half, 1, half}};
}

// One expert's linear. Where its inputs are further apart than its outputs, it is presented as it
// lies, [in, out]: LinearSpec::transposed.
TensorSlice slice_of(const Stack& stack, const TensorInfo& stored, const Lie& lie, const Part& part,
                     std::int64_t expert, const std::string& experts) {
  const std::int64_t size = lie.outputs * lie.inputs;
  TensorSlice slice;
  slice.stored = stored.name;
  slice.info.name =
      fmt::format("{}.{}.{}.{}", experts, expert, part.linear, part_name(stack.piece));
  slice.info.dtype = stored.dtype;
  slice.first = expert * size + part.first_row * lie.output_stride;
  if (stack.piece == Piece::vector) {
    slice.info.shape = {part.rows};
    slice.row_stride = part.rows;
    slice.column_stride = part.row_step;
  } else if (lie.output_stride < lie.input_stride) {
    slice.transposed = true;
    slice.info.shape = {lie.inputs, part.rows};
    slice.row_stride = lie.input_stride;
    slice.column_stride = part.row_step;
  } else {
    slice.info.shape = {part.rows, lie.inputs};
    slice.row_stride = part.row_step * lie.output_stride;
  }
  return slice;
}

// What is wrong with the scales of MXFP4 blocks [E, out, groups, 16]; empty: nothing.
std::string fault_of_scales(const std::map<std::string, TensorInfo>& tensors,
                            const TensorInfo& blocks) {
  constexpr std::string_view ending = "blocks";
  const std::string name = blocks.name.substr(0, blocks.name.size() - ending.size()) + "scales";
  const auto scales = tensors.find(name);
  if (scales == tensors.end())
    return fmt::format("tensor '{}' is missing beside '{}'; download it again", name, blocks.name);
  const std::vector<std::int64_t> wanted(blocks.shape.begin(), blocks.shape.end() - 1);
  if (scales->second.shape == wanted) return {};
  return fmt::format("tensor '{}' has shape {}, but '{}' makes it {}; download it again", name,
                     scales->second.shape, blocks.name, wanted);
}

}  // namespace

ExpertSlices slices_of_experts(const Json& config, const std::map<std::string, TensorInfo>& tensors,
                               const std::string& where) {
  const Json& text = text_part(config);
  const std::string family = family_of(text);
  const std::int64_t hidden = hidden_of(text);
  ExpertSlices result;
  for (const auto& [name, info] : tensors)
    for (const Stack& stack : stacks) {
      if (!name.ends_with(stack.end) || info.shape.size() != axes_of(stack.piece)) continue;
      const std::string experts =
          name.substr(0, name.size() - stack.end.size()) + std::string(stack.experts);
      const std::optional<Lie> lie = lie_of(stack, info, hidden, is_input_first(family));
      const bool halves = stack.content == Content::gate_up;
      const std::string_view first = stack.content == Content::down ? "down_proj" : "gate_proj";
      const auto refuse = [&](Piece piece, const std::string& fault) {
        result.faults.emplace(fmt::format("{}.0.{}.{}", experts, first, part_name(piece)),
                              UserError(ExitCode::data, fmt::format("{}: {}", where, fault)));
      };
      if (stack.piece == Piece::blocks)
        if (const std::string fault = fault_of_scales(tensors, info); !fault.empty())
          refuse(Piece::scales, fault);
      if (!lie || (halves && lie->outputs % 2 != 0)) {
        refuse(stack.piece,
               fmt::format("tensor '{}' has shape {}, in which hidden_size = {} of config.json has "
                           "no place",
                           name, info.shape, hidden));
        continue;
      }
      for (std::int64_t expert = 0; expert < info.shape.front(); ++expert)
        for (const Part& part : parts_of(stack.content, lie->outputs, alternates(family)))
          result.slices.push_back(slice_of(stack, info, *lie, part, expert, experts));
    }
  return result;
}

}  // namespace qpipe
