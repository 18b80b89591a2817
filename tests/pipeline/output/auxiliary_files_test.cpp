// Which files of the model's folder go into the output, beside the weights.
#include "pipeline/output/auxiliary_files.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>

#include "tests/pipeline/file_faults.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

class AuxiliaryFiles : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(from);
    fs::create_directory(to);
  }

  void write(const std::string& name) const {
    fs::create_directories((from / name).parent_path());
    folder.write("from/" + name, name);
  }

  std::set<std::string> copied() const {
    copy_auxiliary_files(from, to);
    std::set<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(to))
      if (!entry.is_directory()) {
        EXPECT_FALSE(entry.is_symlink()) << entry.path();
        names.insert(fs::relative(entry.path(), to).string());
      }
    return names;
  }

  TemporaryFolder folder;
  const fs::path from = folder.path() / "from";
  const fs::path to = folder.path() / "to";
};

TEST_F(AuxiliaryFiles, AllThatALoaderReadsIsCopied) {
  const std::set<std::string> wanted{"processor_config.json",
                                     "preprocessor_config.json",
                                     "video_preprocessor_config.json",
                                     "chat_template.jinja",
                                     "chat_template.json",
                                     "additional_chat_templates/tool_use.jinja",
                                     "additional_chat_templates/rag.jinja",
                                     "tokenizer.json",
                                     "tokenizer.model",
                                     "tokenizer_config.json",
                                     "special_tokens_map.json",
                                     "added_tokens.json",
                                     "qwen.tiktoken",
                                     "vocab.json",
                                     "merges.txt",
                                     "generation_config.json",
                                     "modeling_own.py",
                                     "configuration_own.py",
                                     "LICENSE",
                                     "NOTICE.txt"};
  for (const std::string& name : wanted) write(name);
  for (const char* name : {"config.json",
                           "README.md",
                           "quantize_config.json",
                           "qpipe_files.json",
                           "model.safetensors",
                           "model.safetensors.index.json",
                           "pytorch_model.bin",
                           "pytorch_model.bin.index.json",
                           "consolidated.00.pth",
                           "flax_model.msgpack",
                           "flax_model.msgpack.index.json",
                           "rust_model.ot",
                           "tf_model.h5",
                           "model.gguf",
                           ".gitattributes",
                           ".git/config",
                           "original/params.json",
                           "onnx/model.onnx",
                           "onnx/config.json",
                           "additional_chat_templates/notes.txt",
                           "additional_chat_templates/more/x.jinja"})
    write(name);
  EXPECT_EQ(copied(), wanted);
  EXPECT_EQ(read_bytes(to / "additional_chat_templates" / "rag.jinja"),
            "additional_chat_templates/rag.jinja");
}

TEST_F(AuxiliaryFiles, LinksStayInTheModelOrLeadIntoAHubsCache) {
  const fs::path model = folder.path() / "models--org--name";
  const fs::path snapshot = model / "snapshots" / "0123abcd";
  fs::create_directories(model / "blobs");
  fs::create_directories(snapshot / "additional_chat_templates");
  folder.write("models--org--name/blobs/77", "blob");
  folder.write("secret", "not for the output");
  fs::create_symlink("../../blobs/77", snapshot / "tokenizer.json");
  fs::create_symlink("../../../blobs/77", snapshot / "additional_chat_templates" / "rag.jinja");
  fs::create_symlink("tokenizer.json", snapshot / "again.json");
  fs::create_symlink(folder.path() / "secret", snapshot / "secret.json");
  fs::create_symlink("../../../secret", snapshot / "stolen.py");
  fs::create_symlink("nowhere", snapshot / "broken.json");
  copy_auxiliary_files(snapshot, to);
  fs::create_symlink(model / "blobs" / "77", from / "linked.json");  // a folder of links
  EXPECT_EQ(copied(), (std::set<std::string>{"tokenizer.json", "again.json", "linked.json",
                                             "additional_chat_templates/rag.jinja"}));
  EXPECT_EQ(read_bytes(to / "again.json"), "blob");
}

TEST_F(AuxiliaryFiles, CopiesHaveTheRightsOfNewFiles) {
  write("tokenizer.json");
  write("modeling_own.py");
  chmod((from / "tokenizer.json").c_str(), 0444);
  chmod((from / "modeling_own.py").c_str(), 0777);
  const mode_t before = umask(0027);
  for (int run = 0; run < 2; ++run)  // the second time over the first one's
    EXPECT_EQ(copied(), (std::set<std::string>{"tokenizer.json", "modeling_own.py"}));
  umask(before);
  for (const char* name : {"tokenizer.json", "modeling_own.py"}) {
    struct stat status {};
    ASSERT_EQ(stat((to / name).c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777, 0640u) << name;
  }
}

TEST_F(AuxiliaryFiles, WhatCannotBeReadIsLeftOutUnlessLoadersNeedIt) {
  for (const char* name : {"tokenizer.json", "notes.txt", "LICENSE"}) write(name);
  chmod(folder.path().c_str(), 0755);
  chmod(to.c_str(), 0777);
  chmod((from / "notes.txt").c_str(), 0);
  {
    const WithoutRootRights user;
    EXPECT_EQ(auxiliary_files(from), (std::vector<std::string>{"LICENSE", "tokenizer.json"}));
    EXPECT_EQ(copied(), (std::set<std::string>{"LICENSE", "tokenizer.json"}));
  }
  chmod((from / "tokenizer.json").c_str(), 0);
  const WithoutRootRights user;
  expect_fault([&] { auxiliary_files(from); }, ExitCode::no_input,
               {(from / "tokenizer.json").string(), "Permission denied"});
}

TEST_F(AuxiliaryFiles, NamesThatAreNotTextAreLeftOut) {
  for (const char* name : {"tokenizer.json", "caf\xe9.txt", "a\nb.json"}) write(name);
  EXPECT_EQ(copied(), std::set<std::string>{"tokenizer.json"});
}

TEST_F(AuxiliaryFiles, FifosAndFoldersAreNoFiles) {
  write("tokenizer.json");
  ASSERT_EQ(mkfifo((from / "vocab.json").c_str(), 0600), 0);
  fs::create_directory(from / "merges.txt");
  EXPECT_EQ(copied(), std::set<std::string>{"tokenizer.json"});  // at once
}

TEST_F(AuxiliaryFiles, AFolderThatIsALinkIsNotFollowed) {
  fs::create_directory(folder.path() / "elsewhere");
  folder.write("elsewhere/x.jinja", "x");
  fs::create_directory_symlink(folder.path() / "elsewhere", from / "additional_chat_templates");
  EXPECT_EQ(copied(), std::set<std::string>{});
}

}  // namespace
}  // namespace qpipe
