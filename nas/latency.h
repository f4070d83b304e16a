// The latency of a student at one workload: what each of its layers takes on a device, and all outside them,
// added up. latency.json: minipuzzle.latency/1.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "runtime/architecture.h"
#include "runtime/artefact.h"

namespace minipuzzle::nas {

// What one layer of these sizes takes; layers of equal sizes take the same time, wherever they stand.
struct LayerTime {
    Layer layer;
    double seconds = 0;
};

// A whole forward pass of some of the teacher's layers, timed, and what the table says of it.
struct LatencyCheck {
    std::vector<int64_t> drop;
    double predicted = 0, measured = 0;  // seconds
};

// Times of a prefill: `batch` sequences of `prefill` tokens, the head asked for each sequence's last token
// only (what the first new token needs).
struct LatencyTable {
    Provenance provenance;
    std::string where = "latency table";  // the file it was read from, for messages
    std::string device, precision;        // "bf16" or "fp32": what is computed in
    ModelIdentity model;
    int64_t prefill = 0, batch = 1;
    double outer = 0;  // seconds: embedding, final norm, LM head
    std::vector<LayerTime> layers;
    std::vector<LatencyCheck> checks;

    // Seconds of a layer of these sizes. Error bad_input where it was not timed.
    double seconds(const Layer& layer) const;
    // Of a whole student: `outer` and the sum over its layers.
    double seconds(const Architecture& student) const;
};

// Error bad_input where the table was measured of another architecture.
void check_latency(const LatencyTable& table, const Architecture& teacher);

std::string latency_json(const LatencyTable& table);
LatencyTable read_latency(const std::filesystem::path& path);

}  // namespace minipuzzle::nas
