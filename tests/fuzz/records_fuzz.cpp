// A run folder: identity, a layer's record and a remembered value, one in each part. A part that
// begins with "seal " is JSON that gets its hash here; one that the journal's reader refuses (too
// deep for the library's recursive writer, say) stays as it is.
#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/journal/finished_layers.h"
#include "pipeline/journal/journal.h"
#include "pipeline/journal/sealed.h"
#include "tests/fuzz/fuzz.h"

namespace {

std::string text_of(std::string_view part) try {
  if (!part.starts_with("seal ")) return std::string(part);
  return qpipe::sealed(qpipe::parse_json(part.substr(5), "the part", "it stays as it is"));
} catch (const qpipe::UserError&) {
  return std::string(part);
}

}  // namespace

void qpipe::fuzz::run_input(std::string_view input) {
  static Stream stream(Backend::cpu, 0);
  static Comm comm(stream, {});
  namespace fs = std::filesystem;
  const std::vector<std::string_view> parts = parts_of(input, 3);
  Options options;
  options.output.path = (scratch_folder() / "out").string();
  fs::remove_all(scratch_folder() / "out");
  fs::create_directories(scratch_folder() / "out");
  fs::create_directories(scratch_folder() / "out.run");
  write_file("out.run/run.json", text_of(parts[0]));
  write_file("out.run/layer-00000.0-of-1.json", text_of(parts[1]));
  write_file("out.run/found-memory.json", text_of(parts[2]));
  const nlohmann::json identity{{"quantize.bits", 4}};
  const Journal journal(options, identity, {"model.safetensors"}, comm);
  static_cast<void>(journal.remembered("memory"));
  const std::map<std::string, TensorInfo> tensors{{"a", {"a", DType::u8, {4}}}};
  ShardSet shards(options.output.path, {tensors.at("a")}, 1'000'000, comm);
  shards.write("a", "\1\2\3\4");
  for (const auto& [layer, finished] : find_finished_layers(journal, tensors, shards, comm))
    static_cast<void>(finished.findings());
}
