#include "launch/memory_limits.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace qpipe {
namespace {

namespace fs = std::filesystem;

class ControlGroups : public testing::Test {
 protected:
  const fs::path root = fs::temp_directory_path() / ("qpipe-groups-" + std::to_string(getpid()));

  void TearDown() override { fs::remove_all(root); }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text << "\n";
  }
  std::int64_t room() const { return control_group_room_bytes(root.string()); }
  void mount_version_2(const std::string& mounted_group = "/") const {
    write("proc/self/mountinfo", "23 1 8:1 / / rw - ext4 /dev/root rw\n31 23 0:28 " +
                                     mounted_group +
                                     " /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw");
  }
  void group_2(const std::string& group, const std::string& max, const std::string& high,
               std::int64_t used, std::int64_t cache) const {
    const std::string folder = "sys/fs/cgroup/" + group;
    write(folder + "/memory.max", max);
    write(folder + "/memory.high", high);
    write(folder + "/memory.current", std::to_string(used));
    write(folder + "/memory.stat",
          "anon 5\ninactive_file " + std::to_string(cache) + "\nactive_file 0\nslab 7");
  }
};

TEST_F(ControlGroups, NoneIsNoLimit) { EXPECT_EQ(room(), no_memory_limit); }

TEST_F(ControlGroups, TheLeastOfAllGroupsAboveCounts) {
  mount_version_2();
  write("proc/self/cgroup", "0::/user/job/step");
  group_2("user/job/step", "max", "max", 10, 0);
  EXPECT_EQ(room(), no_memory_limit);
  group_2("user/job", "8000", "max", 3000, 0);
  EXPECT_EQ(room(), 5000);
  group_2("user", "max", "7000", 3000, 0);
  EXPECT_EQ(room(), 4000);
  group_2("user/job/step", "1000", "2000", 900, 50);
  EXPECT_EQ(room(), 150);
  group_2("user/job/step", "1000", "500", 900, 0);
  EXPECT_EQ(room(), 0);
}

TEST_F(ControlGroups, PageCacheMakesRoom) {
  mount_version_2();
  write("proc/self/cgroup", "0::/job");
  group_2("job", "8000", "max", 7500, 7000);
  EXPECT_EQ(room(), 7500);
}

TEST_F(ControlGroups, AContainerSeesAPartOfTheTree) {
  mount_version_2("/docker/1");
  write("proc/self/cgroup", "0::/docker/1/job");
  group_2("job", "8000", "max", 1000, 0);
  EXPECT_EQ(room(), 7000);
  group_2("", "3000", "max", 1000, 0);
  EXPECT_EQ(room(), 2000);
  write("proc/self/cgroup", "0::/of/another/name/space");
  EXPECT_EQ(room(), 2000);
}

TEST_F(ControlGroups, Version1) {
  write("proc/self/mountinfo",
        "31 23 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw");
  write("proc/self/cgroup", "9:name=systemd:/\n4:memory:/slurm/job\n1:cpu:/other\n0::/");
  const std::string job = "sys/fs/cgroup/memory/slurm/job/";
  write(job + "memory.limit_in_bytes", "9223372036854771712");
  write(job + "memory.usage_in_bytes", "700");
  EXPECT_EQ(room(), no_memory_limit);
  write(job + "memory.limit_in_bytes", "1000");
  write(job + "memory.stat", "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 20");
  EXPECT_EQ(room(), 420);
}

TEST(AddressSpace, ALimitCountsWhatIsMapped) {
  const pid_t child = fork();
  if (child == 0) {
    if (address_space_room_bytes() != no_memory_limit) _exit(77);
    const rlimit limit{rlim_t{8} << 30, rlim_t{8} << 30};
    setrlimit(RLIMIT_AS, &limit);
    const std::int64_t room = address_space_room_bytes();
    if (room <= 0) _exit(77);  // a sanitizer's shadow takes terabytes
    _exit(room > std::int64_t{4} << 30 && room < std::int64_t{8} << 30 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "there is a limit already, or a sanitizer maps more";
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace qpipe
