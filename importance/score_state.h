// What `score` keeps on disk while it runs: a header line, then one line a finished batch, append-only.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "runtime/variant_sweep.h"

namespace minipuzzle::importance {

// Figures are kept per stage and window, so that a resumed run may batch what is left as it likes: a window's
// figures depend on that window alone. A kill at any moment leaves whole lines and at most one cut line,
// which opening drops. Doubles are written shortest round-trip, so a resumed run ends in the same bytes.
class ScoreState {
  public:
    // `identity` names everything the figures depend on. With `resume` an existing file is continued: Error
    // bad_input where it belongs to other inputs. An empty path keeps nothing.
    ScoreState(const std::filesystem::path& path, const std::string& identity, bool resume);

    // Of one window of a stage ("layers", "pairs"): a result with that window alone; null where not finished.
    const SweepResult* find(const std::string& stage, int64_t window) const;
    // `windows`: which window each entry of `result` belongs to.
    void add(const std::string& stage, const std::vector<int64_t>& windows, const SweepResult& result);

    const std::filesystem::path& path() const { return path_; }
    // Where width statistics are kept beside it, "" for nowhere; a state that starts anew removes the file.
    std::filesystem::path width_path() const { return width_path(path_); }
    // Removes a state and what stands beside it, where they exist.
    static void remove(const std::filesystem::path& path);

  private:
    static std::filesystem::path width_path(const std::filesystem::path& path);
    void start(const std::string& identity);
    void read_finished(const std::string& identity);
    std::filesystem::path path_;
    std::map<std::string, std::map<int64_t, SweepResult>> finished_;
};

}  // namespace minipuzzle::importance
