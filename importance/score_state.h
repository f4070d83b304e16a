// What `score` keeps on disk while it runs: a header line, then one line a finished batch, append-only.
#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "runtime/variant_sweep.h"

namespace minipuzzle::importance {

// A kill at any moment leaves whole lines and at most one cut line, which opening drops. Doubles are written
// shortest round-trip, so a resumed run ends in the same bytes.
class ScoreState {
  public:
    // `identity` names everything the figures depend on. With `resume` an existing file is continued: Error
    // bad_input where it belongs to other inputs. An empty path keeps nothing.
    ScoreState(const std::filesystem::path& path, const std::string& identity, bool resume);

    bool has(int64_t batch) const { return finished_.count(batch) > 0; }
    const SweepResult& result(int64_t batch) const { return finished_.at(batch); }
    void add(int64_t batch, const SweepResult& result);

  private:
    void read_finished(const std::string& identity);
    std::filesystem::path path_;
    std::map<int64_t, SweepResult> finished_;
};

}  // namespace minipuzzle::importance
