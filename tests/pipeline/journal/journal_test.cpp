// Records, identities and the lock; whole runs are in tests/python/resume_test.py.
#include "pipeline/journal/journal.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "pipeline/files/error.h"
#include "pipeline/journal/run_identity.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

LayerRecord example() {
  LayerRecord record;
  record.layer = 7;
  record.part = 2;
  record.parts = 4;
  record.tensors = {{"a.qweight", "0123"}, {"a.scales", "4567"}};
  record.held = {{"a.qzeros", "89ab"}};
  record.findings = {{"modules", {{{"mean_squared_error", 0.1 + 0.2}}}},
                     {"factors", {1.0f / 3.0f}}};
  return record;
}

TEST(LayerRecord, IsReadBackWhole) {
  const LayerRecord record = example();
  EXPECT_EQ(record.stem(), "layer-00007.2-of-4");
  const LayerRecord read = parse_record(to_text(record));
  EXPECT_EQ(read.stem(), record.stem());
  EXPECT_EQ(read.tensors, record.tensors);
  EXPECT_EQ(read.held, record.held);
  EXPECT_EQ(read.findings, record.findings);
  EXPECT_EQ(read.findings["modules"][0]["mean_squared_error"].get<double>(),
            0.1 + 0.2);  // to the bit
  EXPECT_EQ(read.findings["factors"][0].get<float>(), 1.0f / 3.0f);
}

TEST(LayerRecord, NoDamageIsOverlooked) {
  const std::string text = to_text(example());
  for (std::size_t length = 0; length + 1 < text.size(); ++length)
    EXPECT_ANY_THROW(parse_record(text.substr(0, length))) << length;
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = damaged[i] == '1' ? '2' : '1';
    EXPECT_ANY_THROW(parse_record(damaged)) << i;
  }
}

TEST(RunIdentity, EveryDifferenceIsNamed) {
  const nlohmann::json before{{"quantize.bits", 4}, {"device", "CPU"}, {"gone", "x"}, {"same", 1}};
  const nlohmann::json now{{"quantize.bits", 3}, {"device", "CPU"}, {"same", 1}, {"new", true}};
  EXPECT_EQ(identity_differences(before, before), std::vector<std::string>{});
  EXPECT_EQ(identity_differences(before, now),
            (std::vector<std::string>{"gone: was \"x\", is absent", "new: was absent, is true",
                                      "quantize.bits: was 4, is 3"}));
}

class Lock : public testing::Test {
 protected:
  fs::path folder = fs::temp_directory_path() / ("qpipe_lock_" + std::to_string(getpid()));
  void SetUp() override { fs::create_directories(folder); }
  void TearDown() override { fs::remove_all(folder); }

  // The message that another process gets, "" when it gets the lock.
  std::string of_another_process() const {
    int pipe_ends[2];
    EXPECT_EQ(pipe(pipe_ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      std::string message;
      try {
        const RunLock lock(folder / "lock");
      } catch (const UserError& error) {
        message = error.what();
      }
      const auto wrote = write(pipe_ends[1], message.data(), message.size());
      _exit(wrote == static_cast<ssize_t>(message.size()) ? 0 : 1);
    }
    close(pipe_ends[1]);
    std::string message(1000, '\0');
    message.resize(static_cast<std::size_t>(
        std::max<ssize_t>(read(pipe_ends[0], message.data(), message.size()), 0)));
    close(pipe_ends[0]);
    EXPECT_EQ(waitpid(child, nullptr, 0), child);
    return message;
  }
};

TEST_F(Lock, OneProcessAtATime) {
  {
    const RunLock lock(folder / "lock");
    while (fs::file_size(folder / "lock") == 0) usleep(1000);
    const std::string message = of_another_process();
    EXPECT_NE(message.find("another run works here (process " + std::to_string(getpid()) + " on "),
              std::string::npos)
        << message;
  }
  EXPECT_FALSE(fs::exists(folder / "lock"));
  EXPECT_EQ(of_another_process(), "");
}

TEST_F(Lock, OfAnotherHostThatIsAlive) {
  const auto beat = [&](int count) {
    std::ofstream(folder / "lock") << "elsewhere 17 " << count << "\n";
  };
  beat(1);
  std::thread other([&] {
    sleep(5);
    beat(2);
  });
  const std::string message = of_another_process();
  other.join();
  EXPECT_NE(message.find("another run works here (process 17 on elsewhere)"), std::string::npos)
      << message;
}

}  // namespace
}  // namespace qpipe
