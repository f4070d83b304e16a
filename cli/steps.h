// StepLog: which steps of a run are finished, told by what went in and what came out, not by mere existence.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "runtime/artefact.h"

namespace minipuzzle::cli {

// What a step depends on and what it makes. Files and folders (a folder is its visible files' content).
struct StepFiles {
    std::vector<std::filesystem::path> inputs, outputs;
};

// Kept as `.steps.json` in the run's folder.
class StepLog {
  public:
    explicit StepLog(const std::filesystem::path& folder);

    // The step's identity: version, options, the inputs' content.
    static std::string key_of(const Json& options, const StepFiles& files);
    // Finished under this key, its outputs as it left them.
    bool finished(const std::string& step, const std::string& key, const StepFiles& files) const;
    // Begun under this key and not finished.
    bool begun(const std::string& step, const std::string& key) const;
    void begin(const std::string& step, const std::string& key);
    void finish(const std::string& step, const std::string& key, const StepFiles& files);

  private:
    void write() const;
    std::filesystem::path path_;
    Json steps_;  // {step: {"key": ..., "outputs": hash or null}}
};

}  // namespace minipuzzle::cli
