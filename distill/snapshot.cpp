#include "distill/snapshot.h"

#include <fmt/format.h>

#include <map>

#include "runtime/safetensors.h"

namespace minipuzzle::distill {
namespace {

constexpr const char* kFormat = "minipuzzle.distill_state/1";
constexpr const char* kStateFile = "state.json";
constexpr const char* kTensorSuffix = ".safetensors";

std::vector<int64_t> shape_of(const Tensor& tensor) {
    return {tensor.shape.begin(), tensor.shape.begin() + tensor.rank};
}

// Calls visit(name in the file, tensor) for all that a state holds of a parameter.
template <class Visit>
void for_each_part(const std::vector<TrainedParameter>& parameters, Visit visit) {
    for (const TrainedParameter& p : parameters) visit("parameter." + p.info.slot.name, p.trained());
    for (const TrainedParameter& p : parameters) visit("moment1." + p.info.slot.name, p.moment1);
    for (const TrainedParameter& p : parameters) visit("moment2." + p.info.slot.name, p.moment2);
}

// Writes tensors one by one, so that the host holds one of them at a time.
void write_tensors(Backend& backend, const std::filesystem::path& path,
                   const std::map<std::string, Tensor>& tensors, std::vector<StoredTensor> stored) {
    sort_for_storage(stored);
    FileWriter file(path);
    file.write(safetensors_header(stored, {}));
    std::vector<std::byte> copy;
    for (const StoredTensor& out : stored) {
        const Tensor& tensor = tensors.at(out.name);
        const auto size = static_cast<std::size_t>(tensor.bytes());
        if (tensor.device == DeviceKind::cpu) {
            file.write(std::span<const std::byte>(tensor.data, size));
            continue;
        }
        copy.resize(size);
        backend.copy(copy.data(), tensor.data, tensor.bytes());
        file.write(std::span<const std::byte>(copy));
    }
    file.finish();
}

// A parameter is its master, rounded.
void round_to_parameter(Backend& backend, const TrainedParameter& parameter) {
    if (parameter.master) from_host(backend, parameter.parameter, to_host(backend, parameter.master));
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
    state.skipped = reader.integer("skipped", 0);
    state.skipped_in_a_row = reader.integer("skipped_in_a_row", 0);
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
    json["skipped"] = state.skipped;
    json["skipped_in_a_row"] = state.skipped_in_a_row;
    json["finished"] = state.finished;
    json["device"] = state.identity.device;
    json["inputs"] = state.identity.inputs;
    write_file_atomically(folder_ / kStateFile, pretty(json));
}

void SnapshotFolder::save(Backend& backend, const RunState& state,
                          const std::vector<TrainedParameter>& parameters) {
    std::filesystem::create_directories(folder_);
    std::map<std::string, Tensor> tensors;
    std::vector<StoredTensor> stored;
    for_each_part(parameters, [&](const std::string& name, const Tensor& tensor) {
        tensors.emplace(name, tensor);
        stored.push_back({.name = name, .dtype = tensor.dtype, .shape = shape_of(tensor), .bytes = {}});
    });
    write_tensors(backend, tensor_file(state.step), tensors, std::move(stored));
    write_state(state);
    remove_tensors_except(tensor_file(state.step));
}

void SnapshotFolder::load(Backend& backend, const RunState& state,
                          const std::vector<TrainedParameter>& parameters) const {
    const SafetensorsFile file(tensor_file(state.step));
    for_each_part(parameters, [&](const std::string& name, const Tensor& tensor) {
        const StoredTensor* stored = file.find(name);
        if (!stored || stored->dtype != tensor.dtype || stored->shape != shape_of(tensor))
            fail_input(
                fmt::format("{}: tensor {} is missing or of another shape or dtype than the student's; "
                            "start the run anew",
                            file.path().string(), name));
        backend.copy(tensor.data, stored->bytes.data(), tensor.bytes());
    });
    for (const TrainedParameter& parameter : parameters) round_to_parameter(backend, parameter);
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
