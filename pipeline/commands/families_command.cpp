#include "pipeline/commands/families_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "pipeline/files/error.h"
#include "pipeline/files/json_text.h"
#include "pipeline/files/terminal.h"
#include "pipeline/model/describe_kinds.h"
#include "pipeline/model/model.h"

namespace qpipe {

int run_families(const FamiliesRequest& request) {
  nlohmann::json models = nlohmann::json::array();
  for (const std::filesystem::path& folder : request.models) {
    const std::filesystem::path path = folder / "config.json";
    const Architecture a = read_architecture(read_json_object(path), path.string());
    models.push_back(
        {{"folder", folder.string()}, {"model_type", a.model_type}, {"kinds", describe_kinds(a)}});
  }
  const std::vector<std::string> families = supported_families();
  if (request.json) {
    print_result(to_json_text({{"families", families}, {"models", models}}));
    return static_cast<int>(ExitCode::ok);
  }
  if (models.empty()) print_result("{}\n", fmt::join(families, "\n"));
  for (const nlohmann::json& model : models)
    print_result("{}: {}: {}\n", model["folder"].get<std::string>(),
                 model["model_type"].get<std::string>(),
                 fmt::join(model["kinds"].get<std::vector<std::string>>(), ", "));
  return static_cast<int>(ExitCode::ok);
}

}  // namespace qpipe
