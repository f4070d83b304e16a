#include "distill/snapshot.h"

#include <fmt/format.h>

#include <array>
#include <cstring>

#include "runtime/safetensors.h"

namespace minipuzzle::distill {
namespace {

constexpr const char* kFormat = "minipuzzle.distill_state/1";
constexpr const char* kStateFile = "state.json";
constexpr const char* kTensorSuffix = ".safetensors";

struct Part {
    const char* prefix;
    Tensor TrainedParameter::*tensor;
};
constexpr std::array<Part, 3> kParts = {{{"parameter.", &TrainedParameter::parameter},
                                         {"moment1.", &TrainedParameter::moment1},
                                         {"moment2.", &TrainedParameter::moment2}}};

std::vector<int64_t> shape_of(const Tensor& tensor) {
    return {tensor.shape.begin(), tensor.shape.begin() + tensor.rank};
}

// A tensor's bytes on the host: its own memory on the CPU, else a copy kept in `copies`.
std::span<const std::byte> host_bytes(Backend& backend, const Tensor& tensor,
                                      std::vector<std::vector<std::byte>>& copies) {
    const auto size = static_cast<std::size_t>(tensor.bytes());
    if (tensor.device == DeviceKind::cpu) return {tensor.data, size};
    copies.emplace_back(size);
    backend.copy(copies.back().data(), tensor.data, tensor.bytes());
    return copies.back();
}

}  // namespace

std::filesystem::path SnapshotFolder::tensor_file(int64_t step) const {
    return folder_ / fmt::format("step-{}{}", step, kTensorSuffix);
}

std::optional<RunState> SnapshotFolder::read() const {
    const std::filesystem::path path = folder_ / kStateFile;
    if (!std::filesystem::exists(path)) return std::nullopt;
    const Json json = read_json(path);
    ObjectReader reader(json, path.string() + ": ");
    RunState state;
    state.identity.version = reader.text("version");
    state.provenance = reader.header(kFormat);
    state.step = reader.integer("step");
    state.tokens = reader.integer("tokens");
    state.next_row = reader.integer("next_row");
    state.finished = reader.boolean("finished", false);
    state.identity.device = reader.text("device");
    state.identity.inputs = reader.required("inputs");
    reader.finish();
    return state;
}

void SnapshotFolder::write_state(const RunState& state) {
    Json json = artefact_header(kFormat, state.provenance);
    json["step"] = state.step;
    json["tokens"] = state.tokens;
    json["next_row"] = state.next_row;
    json["finished"] = state.finished;
    json["device"] = state.identity.device;
    json["inputs"] = state.identity.inputs;
    write_file_atomically(folder_ / kStateFile, pretty(json));
}

void SnapshotFolder::save(Backend& backend, const RunState& state,
                          const std::vector<TrainedParameter>& parameters) {
    std::filesystem::create_directories(folder_);
    std::vector<StoredTensor> tensors;
    std::vector<std::vector<std::byte>> copies;
    copies.reserve(parameters.size() * kParts.size());
    for (const Part& part : kParts)
        for (const TrainedParameter& parameter : parameters) {
            const Tensor& tensor = parameter.*part.tensor;
            StoredTensor stored;
            stored.name = part.prefix + parameter.info.slot.name;
            stored.dtype = tensor.dtype;
            stored.shape = shape_of(tensor);
            stored.bytes = host_bytes(backend, tensor, copies);
            tensors.push_back(stored);
        }
    backend.synchronize();
    write_safetensors(tensor_file(state.step), tensors);
    write_state(state);
    remove_tensors_except(tensor_file(state.step));
}

void SnapshotFolder::load(Backend& backend, const RunState& state,
                          const std::vector<TrainedParameter>& parameters) const {
    const SafetensorsFile file(tensor_file(state.step));
    for (const Part& part : kParts)
        for (const TrainedParameter& parameter : parameters) {
            const Tensor& tensor = parameter.*part.tensor;
            const std::string name = part.prefix + parameter.info.slot.name;
            const StoredTensor* stored = file.find(name);
            if (!stored || stored->dtype != tensor.dtype || stored->shape != shape_of(tensor))
                fail_input(
                    fmt::format("{}: tensor {} is missing or of another shape or dtype than the student's; "
                                "start the run anew",
                                file.path().string(), name));
            backend.copy(tensor.data, stored->bytes.data(), tensor.bytes());
        }
    backend.synchronize();
}

void SnapshotFolder::finish(RunState state) {
    state.finished = true;
    write_state(state);
    remove_tensors_except({});
}

void SnapshotFolder::remove() { std::filesystem::remove_all(folder_); }

void SnapshotFolder::remove_tensors_except(const std::filesystem::path& kept) {
    std::vector<std::filesystem::path> stale;
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
        if (entry.path().extension() == kTensorSuffix && entry.path() != kept) stale.push_back(entry.path());
    for (const std::filesystem::path& path : stale) std::filesystem::remove(path);
}

void check_same_run(const RunIdentity& saved, const RunIdentity& now, bool elsewhere,
                    const std::string& where) {
    const auto differs = [&](const std::string& key, const std::string& then, const std::string& today,
                             const char* way_out) {
        fail_input(fmt::format("{}: {} was {}, now {}: {}", where, key, then, today, way_out));
    };
    if (saved.inputs != now.inputs) {
        const Json then = saved.inputs.flatten(), today = now.inputs.flatten();
        const auto text = [](const Json& json, const std::string& key) {
            return json.contains(key) ? json[key].dump() : std::string("not given");
        };
        for (const Json* side : {&then, &today})
            for (const auto& [key, value] : side->items())
                if (text(then, key) != text(today, key))
                    differs(key.substr(1), text(then, key), text(today, key),
                            "resume with what the run began with, or start anew in another folder");
    }
    if (elsewhere) return;
    const char* way_out = "the bits may differ; resume there, or allow it with --resume-elsewhere";
    if (saved.version != now.version) differs("version", saved.version, now.version, way_out);
    if (saved.device != now.device) differs("device", saved.device, now.device, way_out);
}

}  // namespace minipuzzle::distill
