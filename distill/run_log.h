// run.jsonl (minipuzzle.run/1): a header line, then one line a step.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "runtime/artefact.h"

namespace minipuzzle::distill {

struct RunHeader {
    Provenance provenance;
    std::string device;  // Backend::name()
    Json options;        // object, keys spelled as on the command line
};

struct RunStep {
    int64_t step = 0;                       // counted from 1
    int64_t tokens = 0;                     // predicted positions so far, masked ones included
    double loss = 0;                        // nats, mean over the step's unmasked targets, weights applied
    std::optional<double> kl, ce, feature;  // the terms before their weights; null: not in the loss
    std::optional<double> reverse_kl;
    double lr = 0;
    std::optional<double> grad_norm;  // before clipping; null: not finite, the step's update was skipped
    int64_t skipped = 0;              // updates skipped so far
    double tokens_per_second = 0;
    // Useful FLOPs (step_cost.h) a second, and their share of what the device does in a large product; null:
    // not known.
    std::optional<double> tflops, limit_share;
    int64_t peak_bytes = 0;
};

struct RunLog {
    RunHeader header;
    std::vector<RunStep> steps;
};

// Reads a whole log. A last line without its newline (a machine that died while writing) is left out. Error
// bad_input names the file and line: not JSON, unknown or missing keys, steps that do not count up from 1.
RunLog read_run_log(const std::filesystem::path& path);

// Appends to a log, one write a line: a killed process leaves whole lines.
class RunLogWriter {
  public:
    // Replaces the file by one that holds the header alone.
    RunLogWriter(const std::filesystem::path& path, const RunHeader& header);
    // Goes on after step `last_step`: later lines are cut off. Error bad_input where the log ends earlier.
    RunLogWriter(const std::filesystem::path& path, int64_t last_step);
    ~RunLogWriter();
    RunLogWriter(const RunLogWriter&) = delete;
    RunLogWriter& operator=(const RunLogWriter&) = delete;

    void append(const RunStep& step);
    // On disk, not only in the system's cache: called before a state that counts on these lines.
    void flush();

  private:
    void write_line(const std::string& line);
    std::filesystem::path path_;
    int file_ = -1;
};

}  // namespace minipuzzle::distill
