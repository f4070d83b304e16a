#include "runtime/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace minipuzzle {

namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

// The number after `key` in a file of "key number" lines; of a file that holds one number alone, that number
// (key ""). kUnknown where there is none ("max").
int64_t number_in(const char* path, const std::string& key) {
    std::ifstream file(path);
    std::string word;
    while (!key.empty() && word != key)
        if (!(file >> word)) return kUnknown;
    int64_t value = 0;
    return file >> value ? value : kUnknown;
}

// Files that were read but not lately are given up by the kernel when memory is asked for.
int64_t left_of_group(const char* limit_file, const char* usage_file, const char* statistics_file,
                      const std::string& reclaimable) {
    const int64_t limit = number_in(limit_file, ""), usage = number_in(usage_file, "");
    if (limit == kUnknown || usage == kUnknown) return kUnknown;
    const int64_t inactive = number_in(statistics_file, reclaimable);
    return std::max<int64_t>(0, limit - usage + (inactive == kUnknown ? 0 : std::min(inactive, usage)));
}

}  // namespace

int64_t available_host_memory() {
    const int64_t kibibytes = number_in("/proc/meminfo", "MemAvailable:");
    const int64_t system = kibibytes == kUnknown ? kUnknown : kibibytes * 1024;
    const int64_t group = left_of_group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                                        "/sys/fs/cgroup/memory.stat", "inactive_file");
    const int64_t old_group = left_of_group("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                                            "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file");
    return std::min({system, group, old_group});
}

}  // namespace minipuzzle
