#include "distill/model_writer.h"

#include <fmt/format.h>

#include <algorithm>

namespace minipuzzle::distill {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = "config.json";
constexpr const char* kIndex = "model.safetensors.index.json";

bool ends_with(const std::string& text, std::string_view end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// The slot of the layout whose dtype a student's slot takes: its own where the layout is the student's
// folder, the teacher layer's where the student was cut in memory.
std::string layout_slot(const Student& student, const TensorSlot& slot) {
    const bool cut = student.layout->architecture().layers.size() != student.architecture.layers.size();
    if (slot.layer < 0 || !cut) return slot.name;
    MP_ASSERT(student.teacher_layers.size() == student.architecture.layers.size());
    const std::string own = fmt::format("layers.{}.", slot.layer);
    MP_ASSERT(slot.name.rfind(own, 0) == 0);
    return fmt::format("layers.{}.{}", student.teacher_layers[static_cast<std::size_t>(slot.layer)],
                       slot.name.substr(own.size()));
}

DType dtype_of(const Student& student, const TensorSlot& slot) {
    if (student.layout) return student.layout->tensor(layout_slot(student, slot)).dtype;
    // As the released checkpoints have it: the scan's A and D in float32, the rest bf16.
    return ends_with(slot.name, ".A_log") || ends_with(slot.name, ".D") ? DType::f32 : DType::bf16;
}

std::string file_name_of(const Student& student, const TensorSlot& slot) {
    if (student.layout) return student.layout->file_name(slot.name);
    return slot.name == "lm_head.weight" ? slot.name : "backbone." + slot.name;
}

// What the layout's folder holds beside the model, without the traces of a run.
std::vector<fs::path> copies_of(const Student& student) {
    std::vector<fs::path> copies = student.layout ? student.layout->other_files() : student.other_files;
    std::erase_if(copies, [&](const fs::path& path) {
        const std::string name = path.filename().string();
        return name == "run.jsonl" || name.starts_with('.') || student.texts.contains(name);
    });
    return copies;
}

}  // namespace

OutgoingCheckpoint outgoing_student(Backend& backend, const Student& student,
                                    const std::vector<TrainedParameter>& parameters) {
    OutgoingCheckpoint result;
    result.config = student.layout ? student.layout->config() : student.config;
    if (!student.layout || !(student.layout->architecture() == student.architecture))
        update_config(result.config, student.architecture);
    result.copies = copies_of(student);
    result.texts = student.texts;
    for (const TrainedParameter& parameter : parameters) {
        const TensorSlot& slot = parameter.info.slot;
        const DType dtype = dtype_of(student, slot);
        const Tensor tensor = parameter.trained();
        result.tensors.push_back(
            {.name = file_name_of(student, slot),
             .dtype = dtype,
             .shape = slot.shape,
             .bytes = [&backend, tensor, dtype] { return to_dtype(to_host(backend, tensor), dtype); },
             .size = tensor.elements() * bytes_of(dtype)});
    }
    if (student.layout)
        for (const StoredTensor& stored : student.layout->unknown())
            result.tensors.push_back(
                {.name = stored.name,
                 .dtype = stored.dtype,
                 .shape = stored.shape,
                 .bytes = [stored] { return std::vector(stored.bytes.begin(), stored.bytes.end()); },
                 .size = static_cast<int64_t>(stored.bytes.size())});
    return result;
}

void publish_model(const OutgoingCheckpoint& checkpoint, const fs::path& scratch, const fs::path& folder) {
    write_checkpoint(scratch, checkpoint);
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(scratch)) {
        const std::string name = entry.path().filename().string();
        if (!name.starts_with('.') && name != kConfig) names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    names.push_back(kConfig);
    for (const std::string& name : names) fs::rename(scratch / name, folder / name);
    fs::remove_all(scratch);
}

void retract_model(const fs::path& folder) {
    fs::remove(folder / kConfig);
    fs::remove(folder / kIndex);
    std::vector<fs::path> shards;
    for (const auto& entry : fs::directory_iterator(folder))
        if (entry.path().extension() == ".safetensors") shards.push_back(entry.path());
    for (const fs::path& shard : shards) fs::remove(shard);
}

}  // namespace minipuzzle::distill
