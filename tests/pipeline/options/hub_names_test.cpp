#include "pipeline/options/hub_names.h"

#include <gtest/gtest.h>

#include "pipeline/files/error.h"

namespace qpipe {
namespace {

TEST(HubNames, Models) {
  const auto expect = [](const std::string& text, const std::string& repository,
                         const std::string& revision) {
    const auto model = hub_model(text);
    ASSERT_TRUE(model) << text;
    EXPECT_EQ(model->repository, repository);
    EXPECT_EQ(model->revision, revision);
  };
  expect("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "");
  expect("a/b@refs/pr/3", "a/b", "refs/pr/3");
  expect("a_b/c.d@v1.0", "a_b/c.d", "v1.0");
  for (const char* text : {"", "a", "a/b/c", "/a/b", "./a", "../a/b", "a/", "/b", "a/.b", "-a/b",
                           "a/b@", "a/b@-x", "a b/c", "a/b\n", "a/b?c", "hf:a/b"})
    EXPECT_FALSE(hub_model(text)) << text;
}

// A folder of this name is what is meant.
TEST(HubNames, FoldersComeFirst) {
  EXPECT_TRUE(hub_model("proc/self"));
  EXPECT_FALSE(hub_model("/proc/self"));
}

TEST(HubNames, Data) {
  EXPECT_FALSE(hub_data("data/a.txt", ""));
  const auto plain = hub_data("hf:org/data:train", "");
  EXPECT_EQ(plain->repository, "org/data");
  EXPECT_EQ(plain->config, "");
  EXPECT_EQ(plain->split, "train");
  const auto named = hub_data("hf:Salesforce/wikitext/wikitext-2-raw-v1:test", "");
  EXPECT_EQ(named->repository, "Salesforce/wikitext");
  EXPECT_EQ(named->config, "wikitext-2-raw-v1");
  EXPECT_EQ(named->split, "test");
  for (const char* text : {"hf:", "hf:org", "hf:org/data", "hf:org/data:", "hf:org:train",
                           "hf:org/data/a/b:train", "hf:org/data:../x", "hf:org/../data:train"})
    try {
      hub_data(text, "run.toml:3: ");
      ADD_FAILURE() << text;
    } catch (const UserError& error) {
      EXPECT_EQ(error.code, ExitCode::config);
      EXPECT_TRUE(std::string(error.what())
                      .starts_with("run.toml:3: " + std::string(text) +
                                   ": write data of the hub as hf:ORG/NAME"))
          << error.what();
    }
}

}  // namespace
}  // namespace qpipe
