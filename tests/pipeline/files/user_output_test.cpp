#include "pipeline/files/user_output.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <thread>

#include "pipeline/files/durable_file.h"
#include "pipeline/files/new_file.h"
#include "pipeline/files/write_fault.h"
#include "tests/pipeline/file_faults.h"

namespace qpipe {
namespace {

namespace fs = std::filesystem;

mode_t rights_of(const fs::path& path) {
  struct stat status {};
  EXPECT_EQ(lstat(path.c_str(), &status), 0);
  return status.st_mode;
}

class UserOutput : public testing::Test {
 protected:
  TemporaryFolder folder;
  const fs::path path = folder.path() / "out.json";

  std::size_t files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()));
  }
};

TEST_F(UserOutput, AFileIsReplacedWhole) {
  folder.write("out.json", "an older and longer text");
  chmod(path.c_str(), 0444);
  write_user_output(path, "new");
  EXPECT_EQ(read_bytes(path), "new");
  EXPECT_EQ(files(), 1u);
}

TEST_F(UserOutput, TheUmaskIsObeyed) {
  const mode_t before = umask(0027);
  write_user_output(path, "x");
  umask(before);
  EXPECT_EQ(rights_of(path) & 0777, 0640u);
}

TEST_F(UserOutput, ALinkStaysALink) {
  folder.write("target", "old");
  fs::create_symlink("target", path);
  write_user_output(path, "new");
  EXPECT_TRUE(fs::is_symlink(path));
  EXPECT_EQ(read_bytes(folder.path() / "target"), "new");
}

TEST_F(UserOutput, AFolderIsMade) {
  write_user_output(folder.path() / "a" / "b" / "out.json", "new");
  EXPECT_EQ(read_bytes(folder.path() / "a" / "b" / "out.json"), "new");
}

TEST_F(UserOutput, AFifoIsWrittenThrough) {
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  expect_fault([&] { write_user_output(path, "x"); }, ExitCode::cannot_create,
               {path.string(), "nobody reads"});
  const int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK);
  const std::string large(1 << 20, 'x');  // more than the pipe holds
  std::string got;
  std::thread reading([&] {
    std::string block(1 << 16, '\0');
    fcntl(reader, F_SETFL, 0);
    while (got.size() < large.size()) {
      const ssize_t count = read(reader, block.data(), block.size());
      if (count > 0) got.append(block.data(), static_cast<std::size_t>(count));
    }
  });
  write_user_output(path, large);
  reading.join();
  close(reader);
  EXPECT_EQ(got, large);
  EXPECT_TRUE(S_ISFIFO(rights_of(path)));
}

TEST_F(UserOutput, AReaderThatLeavesIsAFault) {
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  take_write_signals_as_faults();
  const int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK);
  std::thread leaving([&] {
    usleep(50'000);
    close(reader);
  });
  expect_fault([&] { write_user_output(path, std::string(1 << 20, 'x') + "; "); }, ExitCode::io,
               {path.string(), "Broken pipe"});
  leaving.join();
}

TEST_F(UserOutput, ADeviceStaysADevice) {
  const fs::path full = folder.path() / "full";
  if (mknod(full.c_str(), S_IFCHR | 0666, makedev(1, 7)) != 0 || access(full.c_str(), W_OK) != 0)
    GTEST_SKIP() << "mknod is not permitted here";
  const int opened = open(full.c_str(), O_WRONLY);
  if (opened < 0) GTEST_SKIP() << "devices of this folder cannot be opened";
  close(opened);
  expect_fault([&] { write_user_output(full, "x"); }, ExitCode::io,
               {full.string(), "No space left on device"});
  expect_fault([&] { user_output_file(full); }, ExitCode::cannot_create, {full.string()});
  expect_fault([&] { write_text_file(full, "x"); }, ExitCode::cannot_create,
               {full.string(), "is a device"});
  EXPECT_TRUE(S_ISCHR(rights_of(full)));
}

TEST_F(UserOutput, OwnOutputIsWrittenThrough) {
  const int kept = dup(STDOUT_FILENO);
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  dup2(file, STDOUT_FILENO);
  write_user_output("/dev/stdout", "first\n");
  write_user_output("/proc/self/fd/1", "second\n");
  const auto wrote = write(STDOUT_FILENO, "third\n", 6);
  dup2(kept, STDOUT_FILENO);
  close(kept);
  close(file);
  EXPECT_EQ(wrote, 6);
  EXPECT_EQ(read_bytes(path), "first\nsecond\nthird\n");
}

TEST_F(UserOutput, AFolderIsNoFile) {
  fs::create_directory(path);
  expect_fault([&] { write_user_output(path, "x"); }, ExitCode::cannot_create,
               {path.string(), "is a folder"});
  expect_fault([&] { check_user_output(path, "--json"); }, ExitCode::cannot_create,
               {path.string(), "is a folder"});
}

TEST_F(UserOutput, WhatCannotBeWrittenIsToldBefore) {
  chmod(folder.path().c_str(), 0555);
  {
    const WithoutRootRights user;
    expect_fault([&] { check_user_output(path, "--json"); }, ExitCode::cannot_create,
                 {folder.path().string(), "--json"});
    expect_fault([&] { check_writable(folder.path() / "a" / "b", "output.path"); },
                 ExitCode::cannot_create, {folder.path().string(), "output.path"});
  }
  folder.write("file", "");
  expect_fault([&] { check_writable(folder.path() / "file" / "b", "output.path"); },
               ExitCode::cannot_create, {"file", "is not a folder"});
  EXPECT_NO_THROW(check_user_output("/dev/null", "--json"));
}

TEST_F(UserOutput, BeyondTheLimitOfAFile) {
  // In a child: limits cannot be raised again.
  const pid_t child = fork();
  if (child == 0) {
    const rlimit limit{4096, 4096};
    setrlimit(RLIMIT_FSIZE, &limit);
    take_write_signals_as_faults();
    try {
      write_user_output(path, std::string(1 << 20, 'x'));
    } catch (const UserError& error) {
      const bool told = std::string(error.what()).find("ulimit -f") != std::string::npos;
      _exit(told && error.code == ExitCode::io ? 7 : 1);
    }
    _exit(2);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(files(), 0u);
}

TEST(TemporaryName, IsNeverTheSame) {
  const fs::path one = temporary_beside("/a/b.json");
  EXPECT_EQ(one.parent_path(), "/a");
  EXPECT_NE(one, temporary_beside("/a/b.json"));
  EXPECT_TRUE(is_temporary_name(one.filename().string()));
  for (const char* name : {"b.json.tmp", ".qpipe-.tmp", ".qpipe-0123456789abcdeG.tmp",
                           ".qpipe-0123456789abcdef.tmp2", "x.qpipe-0123456789abcdef.tmp"})
    EXPECT_FALSE(is_temporary_name(name)) << name;
}

TEST(TemporaryName, ALinkThatWaitsIsNotFollowed) {
  const TemporaryFolder folder;
  folder.write("victim", "days of work");
  fs::create_symlink("victim", folder.path() / "link");
  EXPECT_LT(open_new(folder.path() / "link"), 0);
  EXPECT_EQ(errno, EEXIST);
  EXPECT_EQ(read_bytes(folder.path() / "victim"), "days of work");
}

TEST(WriteTextFiles, NothingButARegularFileIsReplaced) {
  const TemporaryFolder folder;
  fs::create_directory(folder.path() / "folder");
  fs::create_symlink("nowhere", folder.path() / "link");
  ASSERT_EQ(mkfifo((folder.path() / "fifo").c_str(), 0600), 0);
  for (const char* name : {"folder", "link", "fifo"})
    expect_fault(
        [&] {
          write_text_files(folder.path(), {{"first", "x"}, {name, "x"}});
        },
        ExitCode::cannot_create, {name, "move it"});
  EXPECT_FALSE(fs::exists(folder.path() / "first"));
}

}  // namespace
}  // namespace qpipe
