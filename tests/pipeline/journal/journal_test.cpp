// Records, identities and the lock; whole runs are in tests/python/resume_test.py.
#include "pipeline/journal/journal.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "pipeline/files/error.h"
#include "pipeline/files/xxh3.h"
#include "pipeline/journal/build_identity.h"
#include "pipeline/journal/run_files.h"
#include "pipeline/journal/run_identity.h"
#include "pipeline/journal/sealed.h"
#include "tests/pipeline/file_faults.h"

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

TEST(LayerRecord, NoFlippedBitIsOverlooked) {
  const std::string text = to_text(example());
  for (std::size_t length = 0; length < text.size(); ++length)
    EXPECT_ANY_THROW(parse_record(text.substr(0, length))) << length;
  for (std::size_t i = 0; i < text.size(); ++i)
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = text;
      damaged[i] = static_cast<char>(damaged[i] ^ 1 << bit);
      EXPECT_ANY_THROW(parse_record(damaged)) << "byte " << i << ", bit " << bit;
    }
}

TEST(LayerRecord, NumbersThatNoRunWroteAreRefused) {
  for (const char* number : {"18446744073709551616", "-9223372036854775808", "2147483648", "1e300",
                             "0.5", "true", "null", "\"1\""}) {
    nlohmann::json json = nlohmann::json::parse(to_text(example())).at("value");
    json["parts"] = nlohmann::json::parse(number);
    EXPECT_ANY_THROW(parse_record(sealed(json))) << number;
  }
}

TEST(Sealed, ADamagedFileIsToldFromSomebodyElses) {
  const std::string text = sealed({{"x", 1}});
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x80);
    EXPECT_TRUE(looks_sealed(damaged)) << i;
  }
  for (const char* other : {"", "{}", R"({"my": "own"})", R"({"value" : 3})"})
    EXPECT_FALSE(looks_sealed(other)) << other;
}

TEST(Sealed, WhatCannotBeBelievedIsAbsent) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "found-x.json";
  EXPECT_TRUE(read_sealed(path).is_null());
  folder.write("found-x.json", sealed({{"x", 1e5}}));
  EXPECT_EQ(read_sealed(path), (nlohmann::json{{"x", 1e5}}));
  fs::create_symlink("found-x.json", folder.path() / "link.json");
  EXPECT_TRUE(read_sealed(folder.path() / "link.json").is_null());
  fs::create_directory(folder.path() / "folder.json");
  EXPECT_TRUE(read_sealed(folder.path() / "folder.json").is_null());
  ASSERT_EQ(mkfifo((folder.path() / "fifo.json").c_str(), 0600), 0);
  EXPECT_TRUE(read_sealed(folder.path() / "fifo.json").is_null());  // at once
  const std::string nested = std::string(100'000, '[') + std::string(100'000, ']');
  folder.write("found-x.json", R"({"value":)" + nested + R"(,"xxh3":""})");
  EXPECT_TRUE(read_sealed(path).is_null());
}

TEST(RunIdentity, EveryDifferenceIsNamed) {
  const nlohmann::json before{{"quantize.bits", 4}, {"device", "CPU"}, {"gone", "x"}, {"same", 1}};
  const nlohmann::json now{{"quantize.bits", 3}, {"device", "CPU"}, {"same", 1}, {"new", true}};
  EXPECT_EQ(identity_differences(before, before), std::vector<std::string>{});
  EXPECT_EQ(identity_differences(before, now),
            (std::vector<std::string>{"gone: was \"x\", is absent", "new: was absent, is true",
                                      "quantize.bits: was 4, is 3"}));
}

TEST(RunIdentity, TheBuildIsAPart) {
  const nlohmann::json build = build_identity(Backend::cpu);
  EXPECT_EQ(build, build_identity(Backend::cpu));
  EXPECT_EQ(build.at("program").get<std::string>().size(), 32u);
  EXPECT_NE(build.at("BLAS").get<std::string>().find("OpenBLAS"), std::string::npos);
  const nlohmann::json identity{{"build program", "a"}, {"build BLAS", "b"}, {"device", "CPU"}};
  EXPECT_EQ(build_in(identity), (nlohmann::json{{"program", "a"}, {"BLAS", "b"}}));
  EXPECT_EQ(without_build(identity), (nlohmann::json{{"device", "CPU"}}));
}

TEST(RunFolder, OnlyNamesOfRunsAreRemoved) {
  const TemporaryFolder folder;
  const std::set<std::string> ours{"run.json",
                                   "output.json",
                                   "layer-00007.2-of-4.json",
                                   "layer-00007.2-of-4.safetensors",
                                   "layer-123456.0-of-1.json",
                                   "found-perplexity_before.json",
                                   ".qpipe-0123456789abcdef.tmp",
                                   "activations-a1B2c3"};
  const std::set<std::string> others{"layer-7.json",
                                     "layer-00007.2-of-4.json.bak",
                                     "layer-notes.txt",
                                     "found-me.txt",
                                     "model.tmp",
                                     "lock",
                                     "layer-00007.2-of-4.tmp",
                                     "activations-of-monday"};
  for (const auto& names : {ours, others})
    for (const std::string& name : names) folder.write(name, name);
  clear_run_folder(folder.path());
  std::set<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder.path()))
    left.insert(entry.path().filename().string());
  EXPECT_EQ(left, others);
}

// What a run with one rank sees of folders.
class Folders : public testing::Test {
 protected:
  TemporaryFolder folder;
  const fs::path output = folder.path() / "out";
  const fs::path run = folder.path() / "out.run";
  const FileNames files{"config.json", "model.safetensors", manifest_name};
  nlohmann::json identity{{"quantize.bits", 4}, {"build program", "a"}};
  Options options;
  Stream stream{Backend::cpu, 0};
  Comm comm{stream, Comm::Options{}};

  void SetUp() override { options.output.path = output.string(); }
  Journal journal() { return Journal(options, identity, files, comm); }
  void write_output() const {
    folder.write("out/config.json", "{}");
    folder.write("out/model.safetensors", "weights");
    write_manifest(output, files);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(folder.path()))
      found.push_back(fs::relative(entry.path(), folder.path()).string());
    std::sort(found.begin(), found.end());
    return found;
  }
};

TEST_F(Folders, ARunLeavesItsOutputAlone) {
  {
    Journal one = journal();
    EXPECT_FALSE(one.resumed());
    EXPECT_TRUE(fs::exists(output / output_lock_name));
    write_output();
    one.remove();
  }
  EXPECT_EQ(names(), (std::vector<std::string>{"out", "out/config.json", "out/model.safetensors",
                                               "out/qpipe_files.json"}));
  expect_fault([&] { journal(); }, ExitCode::cannot_create, {"is not empty", "output.overwrite"});
  EXPECT_FALSE(fs::exists(run));  // a refused run leaves nothing
}

TEST_F(Folders, OneRunAtATimeInAnOutput) {
  const Journal one = journal();
  options.run.folder = (folder.path() / "elsewhere").string();
  for (const char* path : {"out", "out/", "out/.", "./out"}) {
    options.output.path = (folder.path() / path).string();
    // flock() holds between descriptors of one process, too.
    expect_fault([&] { journal(); }, ExitCode::cannot_create, {"out", "another run works here"});
  }
  EXPECT_FALSE(fs::exists(options.run.folder));
}

TEST_F(Folders, ADamagedLockIsALock) {
  { const Journal one = journal(); }
  std::string host(256, '\0');
  ASSERT_EQ(gethostname(host.data(), host.size() - 1), 0);
  const std::string line = host.c_str() + std::string(" 1w 0000000003\n");  // "17" once
  folder.write("out.run/lock", line);
  folder.write("out/.qpipe.lock", line);
  const Journal two = journal();
  EXPECT_TRUE(two.resumed());
}

TEST_F(Folders, AnotherBuildIsRefusedOrAllowed) {
  {
    const Journal one = journal();
    EXPECT_EQ(one.builds(), (nlohmann::json{{{"program", "a"}}}));
  }
  identity["build program"] = "b";
  expect_fault([&] { journal(); }, ExitCode::config,
               {"build program: was \"a\", is \"b\"", "run.allow_other_build"});
  options.run.allow_other_build = true;
  {
    const Journal two = journal();
    EXPECT_TRUE(two.resumed());
    EXPECT_EQ(two.builds(), (nlohmann::json{{{"program", "a"}}, {{"program", "b"}}}));
  }
  identity["build program"] = "a";
  options.run.allow_other_build = false;
  {
    const Journal three = journal();  // b's layers are in it
    EXPECT_EQ(three.builds().size(), 3u);
  }
  options.run.allow_other_build = true;
  identity["quantize.bits"] = 3;
  expect_fault([&] { journal(); }, ExitCode::config,
               {"quantize.bits: was 4, is 3; put these back"});
}

TEST_F(Folders, ManyDifferencesAreOneLine) {
  { const Journal one = journal(); }
  for (int i = 0; i < 9; ++i) identity["key" + std::to_string(i)] = i;
  expect_fault([&] { journal(); }, ExitCode::config, {"key4: was absent, is 4; and 4 more; put"});
}

TEST_F(Folders, ARunThatIsKilledWhileItClearsIsComplete) {
  const auto kill_while_clearing = [&](int step) {
    fs::remove_all(output);
    fs::remove_all(run);
    {
      const Journal one = journal();
      write_output();
      fs::copy(run, folder.path() / "kept", fs::copy_options::recursive);
    }
    Journal again = journal();
    again.remove();
    // The mark as remove() writes it, and the run folder as it may stand.
    folder.write("mark.json",
                 sealed({{"identity", identity}, {"manifest", [&] {
                                                    Xxh3 hash;
                                                    const std::string text =
                                                        read_bytes(output / manifest_name);
                                                    hash.add(text.data(), text.size());
                                                    return hash.hexadecimal();
                                                  }()}}));
    fs::rename(folder.path() / "mark.json", folder.path() / "out.run.finished");
    fs::rename(folder.path() / "kept", run);
    if (step > 0) fs::remove(run / "run.json");
    if (step > 1) fs::remove(run / "output.json");
    if (step > 2) fs::remove_all(run);
  };
  for (int step = 0; step <= 3; ++step) {
    kill_while_clearing(step);
    {
      const Journal after = journal();
      EXPECT_TRUE(after.complete()) << step;
    }
    EXPECT_EQ(names(), (std::vector<std::string>{"out", "out/config.json", "out/model.safetensors",
                                                 "out/qpipe_files.json"}))
        << step;
  }
  // Another command, or another output: nothing is taken for complete, and nothing removed.
  kill_while_clearing(1);
  identity["quantize.bits"] = 3;
  expect_fault([&] { journal(); }, ExitCode::cannot_create, {"is not empty"});
  identity["quantize.bits"] = 4;
  folder.write("out/model.safetensors", "Weights");
  expect_fault([&] { journal(); }, ExitCode::cannot_create, {"is not empty"});
  EXPECT_EQ(read_bytes(output / "model.safetensors"), "Weights");
}

TEST_F(Folders, ADamagedRunStartsOver) {
  { const Journal one = journal(); }
  folder.write("out/model.safetensors.tmp", "half of it");
  std::string text = read_bytes(run / "run.json");
  text[text.size() / 2] = static_cast<char>(text[text.size() / 2] ^ 1);
  folder.write("out.run/run.json", text);
  options.run.resume = "require";
  expect_fault([&] { journal(); }, ExitCode::data, {"run.json: is damaged"});
  options.run.resume = "auto";
  {
    const Journal two = journal();
    EXPECT_FALSE(two.resumed());
  }
  EXPECT_FALSE(fs::exists(output / "model.safetensors.tmp"));
  // Without the list of names nothing proves whose file it is.
  folder.write("out/model.safetensors.tmp", "half of it");
  folder.write("out.run/run.json", text);
  folder.write("out.run/output.json", text);
  expect_fault([&] { journal(); }, ExitCode::cannot_create, {"is not empty"});
  EXPECT_TRUE(fs::exists(output / "model.safetensors.tmp"));
}

TEST_F(Folders, StrangersInTheRunFolderAreToldAtOnce) {
  fs::create_directory(run);
  for (const char* name : {"layer-00000.0-of-1.json", "layer-00000.0-of-1.safetensors",
                           "found-perplexity_before.json", "run.json", "output.json"}) {
    ASSERT_EQ(mkfifo((run / name).c_str(), 0600), 0);
    expect_fault([&] { journal(); }, ExitCode::cannot_create, {name, "is a FIFO"});
    expect_fault([&] { check_folders(options, files); }, ExitCode::cannot_create,
                 {name, "is a FIFO"});
    fs::remove(run / name);
    fs::create_directory(run / name);
    expect_fault([&] { journal(); }, ExitCode::cannot_create, {name, "is a folder"});
    fs::remove(run / name);
  }
  for (const char* name : {"run.json", "output.json", "found-me.json", "layer-00000.0-of-1.json"}) {
    folder.write(std::string("out.run/") + name, R"({"my": "own"})");
    expect_fault([&] { journal(); }, ExitCode::cannot_create, {name, "was not written by qpipe"});
    EXPECT_EQ(read_bytes(run / name), R"({"my": "own"})");
    fs::remove(run / name);
  }
  ASSERT_EQ(mkfifo((run / "lock").c_str(), 0600), 0);
  expect_fault([&] { journal(); }, ExitCode::cannot_create, {"lock", "not the lock of a run"});
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

TEST_F(Lock, AnotherFileOfItsNameStays) {
  std::ofstream(folder / "lock") << "the key is under the mat\n";
  EXPECT_NE(of_another_process().find("is not the lock of a run; move it"), std::string::npos);
  EXPECT_TRUE(fs::exists(folder / "lock"));
}

TEST_F(Lock, OfAnotherHostThatIsAlive) {
  const auto beat = [&](int count) {
    std::ofstream(folder / "lock") << "elsewhere 17 " << count << "\n";
  };
  beat(1);
  std::thread other([&] {
    sleep(2);
    beat(2);
  });
  const std::string message = of_another_process();
  other.join();
  EXPECT_NE(message.find("another run works here (process 17 on elsewhere)"), std::string::npos)
      << message;
}

}  // namespace
}  // namespace qpipe
