#include "launch/memory_limits.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

namespace qpipe {

namespace fs = std::filesystem;

namespace {

// Names of files and of the lines of memory.stat, in one version of control groups.
struct Version {
  const char* file_system;
  std::vector<const char*> limits;
  const char* usage;
  std::vector<const char*> page_cache;
};

const Version version_1{"cgroup",
                        {"memory.limit_in_bytes"},
                        "memory.usage_in_bytes",
                        {"total_inactive_file", "total_active_file"}};
const Version version_2{
    "cgroup2", {"memory.max", "memory.high"}, "memory.current", {"inactive_file", "active_file"}};

// nullopt for "max" and where there is no such file.
std::optional<std::int64_t> read_number(const fs::path& path) {
  std::ifstream file(path);
  std::int64_t value = 0;
  if (file >> value) return value;
  return {};
}

std::int64_t page_cache_bytes(const Version& version, const fs::path& group) {
  std::ifstream file(group / "memory.stat");
  std::string key;
  std::int64_t value = 0;
  std::int64_t bytes = 0;
  while (file >> key >> value)
    for (const char* wanted : version.page_cache) bytes += key == wanted ? value : 0;
  return bytes;
}

std::int64_t room_of(const Version& version, const fs::path& group) {
  std::int64_t limit = no_memory_limit;
  for (const char* name : version.limits)
    limit = std::min(limit, read_number(group / name).value_or(no_memory_limit));
  const std::optional<std::int64_t> used = read_number(group / version.usage);
  constexpr std::int64_t unlimited = std::int64_t{1} << 60;  // version 1 has no word for it
  if (limit >= unlimited || !used) return no_memory_limit;
  return std::max<std::int64_t>(0,
                                limit - *used + std::min(*used, page_cache_bytes(version, group)));
}

// "rw,memory".
bool lists_memory(const std::string& names) {
  std::istringstream list(names);
  for (std::string name; std::getline(list, name, ',');)
    if (name == "memory") return true;
  return false;
}

struct Mount {
  std::string group;  // that is mounted
  fs::path folder;    // where
};

// Of /proc/self/mountinfo: ID PARENT DEVICE ROOT FOLDER OPTIONS … - TYPE SOURCE OPTIONS.
std::optional<Mount> find_mount(const Version& version, const std::string& root) {
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash));
    std::istringstream after(line.substr(dash + 3));
    std::string skipped, group, folder, type, source, options;
    before >> skipped >> skipped >> skipped >> group >> folder;
    after >> type >> source >> options;
    if (type == version.file_system && (&version == &version_2 || lists_memory(options)))
      return Mount{group, root + folder};
  }
  return {};
}

// Of /proc/self/cgroup: NUMBER:CONTROLLERS:GROUP, without controllers in version 2.
std::string own_group(const Version& version, const std::string& root) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (&version == &version_2 ? controllers.empty() : lists_memory(controllers))
      return line.substr(second + 1);
  }
  return "/";
}

// The group and all above it, as far as they are mounted.
std::int64_t room_under(const Version& version, const std::string& root) {
  const std::optional<Mount> mount = find_mount(version, root);
  if (!mount) return no_memory_limit;
  std::string group = own_group(version, root);
  if (mount->group != "/" && group.starts_with(mount->group))
    group = group.substr(mount->group.size());  // a container sees a part of the tree
  fs::path inside = fs::path(group).relative_path();
  std::error_code error;
  // Where the group's name is that of another name space, its own group is at the top.
  if (!fs::is_directory(mount->folder / inside, error)) inside.clear();
  std::int64_t room = room_of(version, mount->folder);
  for (; !inside.empty(); inside = inside.parent_path())
    room = std::min(room, room_of(version, mount->folder / inside));
  return room;
}

}  // namespace

std::int64_t control_group_room_bytes(const std::string& root) {
  return std::min(room_under(version_1, root), room_under(version_2, root));
}

std::int64_t address_space_room_bytes() {
  // In pages: size, resident, shared, text, 0, data.
  std::ifstream file("/proc/self/statm");
  std::int64_t size = 0, skipped = 0, data = 0;
  file >> size >> skipped >> skipped >> skipped >> skipped >> data;
  const std::int64_t page = sysconf(_SC_PAGESIZE);
  std::int64_t room = no_memory_limit;
  const auto count = [&](int resource, std::int64_t pages) {
    rlimit limit{};
    if (getrlimit(static_cast<__rlimit_resource_t>(resource), &limit) != 0 ||
        limit.rlim_cur == RLIM_INFINITY)
      return;
    const auto bytes = static_cast<std::int64_t>(
        std::min<rlim_t>(limit.rlim_cur, static_cast<rlim_t>(no_memory_limit)));
    room = std::min(room, std::max<std::int64_t>(0, bytes - pages * page));
  };
  count(RLIMIT_AS, size);
  count(RLIMIT_DATA, data);
  return room;
}

}  // namespace qpipe
