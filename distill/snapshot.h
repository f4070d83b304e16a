// The resumable state of a run: what is trained (masters where there are any), both moments, step and data
// position.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "distill/optimizer.h"
#include "runtime/artefact.h"

namespace minipuzzle::distill {

// What a state belongs to. A resume must agree in all of `inputs`; version and device may differ on request.
struct RunIdentity {
    std::string version, device;
    Json inputs;  // options, data hashes, models: whatever changes the result
};

// state.json: minipuzzle.distill_state/1.
struct RunState {
    Provenance provenance;
    int64_t step = 0;              // steps done
    int64_t tokens = 0;            // predicted positions so far
    int64_t next_row = 0;          // of PackedRows
    int64_t skipped = 0;           // steps whose update was skipped: their gradients were not finite
    int64_t skipped_in_a_row = 0;  // the last of them
    bool finished = false;         // the model folder is complete; no tensors are kept
    RunIdentity identity;
};

// The state folder of a run. state.json names the tensor file it belongs to and is replaced last, so that a
// kill at any moment leaves the old state or the new one.
class SnapshotFolder {
  public:
    explicit SnapshotFolder(std::filesystem::path folder) : folder_(std::move(folder)) {}

    const std::filesystem::path& path() const { return folder_; }
    // nullopt where nothing was saved yet. Error bad_input where the file is not ours.
    std::optional<RunState> read() const;
    void save(Backend& backend, const RunState& state, const std::vector<TrainedParameter>& parameters);
    // Fills masters, parameters and moments. Error bad_input where the tensors do not match.
    void load(Backend& backend, const RunState& state, const std::vector<TrainedParameter>& parameters) const;
    // Marks the run as finished and drops the tensors.
    void finish(RunState state);
    void remove();

  private:
    std::filesystem::path tensor_file(int64_t step) const;
    void write_state(const RunState& state);
    void remove_tensors_except(const std::filesystem::path& kept);
    std::filesystem::path folder_;
};

// Error bad_input where the state `saved` in `where` must not be continued by the run `now`: names the first
// thing that differs, both values and the way out.
void check_same_run(const RunIdentity& saved, const RunIdentity& now, bool elsewhere,
                    const std::string& where);

}  // namespace minipuzzle::distill
