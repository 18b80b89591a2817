// Only what qpipe wrote is removed.
#include "pipeline/output/output_folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "tests/pipeline/file_faults.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

class Output : public testing::Test {
 protected:
  TemporaryFolder folder;
  OutputFolder output{
      folder.path() / "out",
      {"config.json", "model.safetensors", "tokenizer.json", "README.md", manifest_name},
      {},
      true};

  void SetUp() override { fs::create_directory(output.path); }

  void write(const std::string& name, const std::string& text = "days of work") const {
    fs::create_directories((output.path / name).parent_path());
    folder.write("out/" + name, text);
  }
  void write_finished_run() const {
    for (const std::string& name : output.written)
      if (name != manifest_name) write(name, "of a run: " + name);
    write("model-00001-of-00002.safetensors", std::string(10'000'000, 'w'));
    write("additional_chat_templates/rag.jinja", "template");
    FileNames names = output.written;
    names.insert({"model-00001-of-00002.safetensors", "additional_chat_templates/rag.jinja"});
    write_manifest(output.path, names);
  }
  std::set<std::string> names() const {
    std::set<std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(output.path))
      found.insert(fs::relative(entry.path(), output.path).string());
    return found;
  }
  void expect_refused(const std::vector<std::string>& parts) const {
    const std::set<std::string> before = names();
    expect_fault([&] { check_output_folder(output); }, ExitCode::cannot_create, parts);
    expect_fault([&] { prepare_output_folder(output); }, ExitCode::cannot_create, parts);
    EXPECT_EQ(names(), before);
  }
};

TEST_F(Output, AFinishedRunIsRemovedAndOtherFilesStay) {
  write_finished_run();
  EXPECT_TRUE(manifest_holds(output.path));
  const std::set<std::string> others{
      "mine.gguf", "tokens.h5", "notes.bin", "x.onnx", "old.tmp", "sub", "sub/model.safetensors"};
  for (const std::string& name : others)
    if (name != "sub") write(name);
  prepare_output_folder(output);
  EXPECT_EQ(names(), others);
}

TEST_F(Output, WithoutOverwriteNothingIsRemoved) {
  output.overwrite = false;
  prepare_output_folder(output);
  write("mine.gguf");
  expect_refused({"is not empty", "output.overwrite = true"});
  fs::remove(output.path / "mine.gguf");
  write_finished_run();
  expect_refused({"is not empty", "output.overwrite = true"});
}

TEST_F(Output, WhatWouldBeReplacedIsRefused) {
  for (const char* name : {"config.json", "README.md", "tokenizer.json", "model.safetensors",
                           "model.safetensors.tmp", "qpipe_files.json"}) {
    write(name);
    expect_refused({std::string("out/") + name, "was not written by qpipe", "move it"});
    fs::remove(output.path / name);
  }
}

TEST_F(Output, WhatLoadersWouldReadIsRefused) {
  for (const char* name :
       {"tokens.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
        "adapter_config.json", "adapter_model.bin", "generation_config.json", "vocab.json",
        "additional_chat_templates/mine.jinja", "modeling_mine.py"}) {
    write(name);
    expect_refused({std::string("out/") + name, "loaders would take it", "move it"});
    fs::remove(output.path / name);
  }
}

TEST_F(Output, AFileThatWasChangedSinceIsSomebodysWork) {
  for (const char* name : {"README.md", "model-00001-of-00002.safetensors", "config.json"}) {
    write_finished_run();
    std::string text = read_bytes(output.path / name);
    text.back() = '!';
    write(name, text);
    EXPECT_FALSE(manifest_holds(output.path));
    expect_refused({std::string("out/") + name, "was changed since"});
  }
}

TEST_F(Output, OtherWeightsOfTheSameSizeAreNoticed) {
  write_finished_run();
  write("model-00001-of-00002.safetensors", std::string(10'000'000, 'v'));
  expect_refused({"out/model-00001-of-00002.safetensors"});
}

TEST_F(Output, AManifestThatLeadsOutOfTheFolderIsNotBelieved) {
  folder.write("victim", "days of work");
  fs::create_directory(folder.path() / "elsewhere");
  folder.write("elsewhere/victim", "days of work");
  fs::create_directory_symlink("../elsewhere", output.path / "link");
  fs::create_symlink("../victim", output.path / "linked");
  write("copy");
  write_manifest(output.path, {"copy"});
  nlohmann::json manifest = nlohmann::json::parse(read_bytes(output.path / manifest_name));
  const nlohmann::json file = manifest["files"]["copy"];
  const std::string elsewhere = folder.path() / "victim";
  for (const std::string& name :
       std::vector<std::string>{"../victim", "link/victim", "linked", "./copy", "", elsewhere})
    manifest["files"][name] = file;
  write(manifest_name, manifest.dump());
  EXPECT_EQ(files_of_manifest(output.path), (FileNames{"copy", manifest_name}));
}

TEST_F(Output, ADamagedManifestProvesNothing) {
  write_finished_run();
  for (const std::string text : {"", "{", "[]", R"({"files": 3})", R"({"files": {"a": {}}})"}) {
    write(manifest_name, text);
    EXPECT_EQ(files_of_manifest(output.path), FileNames{});
    EXPECT_FALSE(manifest_holds(output.path));
  }
  fs::remove(output.path / manifest_name);
  ASSERT_EQ(mkfifo((output.path / manifest_name).c_str(), 0600), 0);
  EXPECT_EQ(files_of_manifest(output.path), FileNames{});  // at once
}

TEST_F(Output, WhatAnUnfinishedRunLeftIsRemoved) {
  output.overwrite = false;
  output.unfinished = {"model.safetensors", "model.safetensors.tmp", "config.json"};
  write("model.safetensors.tmp");
  write("config.json");
  write(".qpipe-0123456789abcdef.tmp");
  write("mine.gguf");  // was here before that run, which was allowed to overwrite
  prepare_output_folder(output);
  EXPECT_EQ(names(), std::set<std::string>{"mine.gguf"});
}

TEST_F(Output, FifosAndLinksAreNotOurs) {
  output.unfinished = {"config.json", "model.safetensors"};
  ASSERT_EQ(mkfifo((output.path / "config.json").c_str(), 0600), 0);
  expect_refused({"out/config.json"});
  fs::remove(output.path / "config.json");
  folder.write("victim", "days of work");
  fs::create_symlink("../victim", output.path / "model.safetensors");
  expect_refused({"out/model.safetensors"});
}

TEST_F(Output, WhatIsNoFolderOrCannotBeWrittenIsRefused) {
  folder.write("file", "");
  output.path = folder.path() / "file";
  expect_fault([&] { check_output_folder(output); }, ExitCode::cannot_create,
               {"file: exists and is not a folder", "output.path"});
  output.path = folder.path() / "file" / "out";
  expect_fault([&] { check_output_folder(output); }, ExitCode::cannot_create,
               {"file: exists and is not a folder"});
  output.path = folder.path() / "new" / "out";
  chmod(folder.path().c_str(), 0555);
  const WithoutRootRights user;
  expect_fault([&] { check_output_folder(output); }, ExitCode::cannot_create, {"is not writable"});
}

}  // namespace
}  // namespace qpipe
