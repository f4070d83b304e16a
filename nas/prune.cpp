#include "nas/prune.h"

#include <fmt/format.h>

#include <cstring>
#include <map>

#include "nas/mamba_heads.h"

namespace minipuzzle::nas {

namespace {

constexpr const char* kUpProj = "mixer.up_proj.weight";
constexpr const char* kDownProj = "mixer.down_proj.weight";

std::vector<std::byte> copy_of(const StoredTensor& tensor) {
    return {tensor.bytes.begin(), tensor.bytes.end()};
}

// The rows `kept` of a [rows, ...] tensor, in their order.
std::vector<std::byte> select_rows(const StoredTensor& tensor, const std::vector<int32_t>& kept) {
    const std::size_t row = tensor.bytes.size() / static_cast<std::size_t>(tensor.shape[0]);
    std::vector<std::byte> out(kept.size() * row);
    for (std::size_t i = 0; i < kept.size(); ++i)
        std::memcpy(out.data() + i * row, tensor.bytes.data() + static_cast<std::size_t>(kept[i]) * row, row);
    return out;
}

// The columns `kept` of a [rows, columns] tensor, in their order.
std::vector<std::byte> select_columns(const StoredTensor& tensor, const std::vector<int32_t>& kept) {
    const std::size_t element = static_cast<std::size_t>(bytes_of(tensor.dtype));
    const std::size_t rows = static_cast<std::size_t>(tensor.shape[0]);
    const std::size_t row = static_cast<std::size_t>(tensor.shape[1]) * element;
    std::vector<std::byte> out(rows * kept.size() * element);
    std::byte* to = out.data();
    for (std::size_t r = 0; r < rows; ++r)
        for (const int32_t column : kept) {
            std::memcpy(to, tensor.bytes.data() + r * row + static_cast<std::size_t>(column) * element,
                        element);
            to += element;
        }
    return out;
}

// What prune needs to make one tensor after another.
struct Cut {
    const Checkpoint& teacher;
    const StudentPlan& plan;
    const WidthScores* width;
    std::vector<int64_t> kept;  // teacher layer of each student layer
};

// "layers.5.mixer.up_proj.weight" without its layer: "mixer.up_proj.weight".
std::string suffix_of(const TensorSlot& slot) {
    const std::string prefix = fmt::format("layers.{}.", slot.layer);
    MP_ASSERT(slot.name.starts_with(prefix));
    return slot.name.substr(prefix.size());
}

// What stays of a tensor that the plan narrows.
AxisCut axis_cut(const Cut& cut, int64_t layer, const std::string& suffix) {
    MP_ASSERT(cut.width != nullptr);
    const Architecture& teacher = cut.teacher.architecture();
    if (const auto* mamba = std::get_if<Mamba>(&teacher.layers[static_cast<std::size_t>(layer)]))
        return cut_to_heads(
            *mamba, kept_heads(*cut.width, layer, *mamba, cut.plan.mamba_heads_per_group.value()), suffix);
    MP_ASSERT(suffix == kUpProj || suffix == kDownProj);
    return {.axis = suffix == kUpProj ? 0 : 1,
            .kept = kept_neurons(*cut.width, layer, cut.plan.width_of(teacher, layer))};
}

// The student's tensor of a slot: the teacher's bytes, or the part of them that the plan keeps.
OutgoingTensor cut_tensor(const Cut& cut, const TensorSlot& slot) {
    OutgoingTensor out;
    out.name = cut.teacher.file_name(slot.name);
    out.shape = slot.shape;
    std::string source = slot.name, suffix;
    int64_t layer = -1;
    if (slot.layer >= 0) {
        layer = cut.kept[static_cast<std::size_t>(slot.layer)];
        suffix = suffix_of(slot);
        source = fmt::format("layers.{}.{}", layer, suffix);
    }
    const StoredTensor tensor = cut.teacher.tensor(source);
    out.dtype = tensor.dtype;
    out.size = bytes_of(tensor.dtype);
    for (const int64_t extent : slot.shape) out.size *= extent;
    if (tensor.shape == slot.shape) {
        out.bytes = [tensor] { return copy_of(tensor); };
        return out;
    }
    out.bytes = [tensor, part = axis_cut(cut, layer, suffix)] {
        return part.axis == 0 ? select_rows(tensor, part.kept) : select_columns(tensor, part.kept);
    };
    return out;
}

OutgoingTensor carried(const StoredTensor& tensor) {
    OutgoingTensor out;
    out.name = tensor.name;
    out.dtype = tensor.dtype;
    out.shape = tensor.shape;
    out.bytes = [tensor] { return copy_of(tensor); };
    out.size = static_cast<int64_t>(tensor.bytes.size());
    return out;
}

[[noreturn]] void fail_without_orders(int64_t layer, const std::string& narrowed) {
    fail_input(
        fmt::format("plan: layer {} is narrowed to {} but no width_scores are given; name the file that "
                    "`score --width` wrote",
                    layer, narrowed));
}

void check_neuron_order(const Cut& cut, int64_t layer, const Ffn& ffn) {
    const int64_t wanted = cut.plan.width_of(cut.teacher.architecture(), layer);
    if (wanted == ffn.width) return;
    if (cut.width == nullptr) fail_without_orders(layer, std::to_string(wanted));
    const auto order = cut.width->ffn_order.find(layer);
    const int64_t known =
        order == cut.width->ffn_order.end() ? 0 : static_cast<int64_t>(order->second.size());
    if (known != ffn.width)
        fail_input(
            fmt::format("width scores: found the order of {} neurons for layer {}, expected the "
                        "teacher's {}; score this model with --width",
                        known, layer, ffn.width));
}

void check_head_order(const Cut& cut, int64_t layer, const Mamba& mamba) {
    const int64_t own = div_exact(mamba.heads, mamba.groups);
    const int64_t wanted = cut.plan.mamba_heads_per_group.value_or(own);
    if (wanted == own) return;
    if (cut.width == nullptr) fail_without_orders(layer, fmt::format("{} Mamba heads a group", wanted));
    kept_heads(*cut.width, layer, mamba, wanted);  // its errors are the check
}

// Error bad_input where a kept layer is narrowed without an order of its neurons or heads that fits the
// teacher.
void check_orders(const Cut& cut) {
    for (const int64_t index : cut.kept) {
        const Layer& layer = cut.teacher.architecture().layers[static_cast<std::size_t>(index)];
        if (const auto* ffn = std::get_if<Ffn>(&layer)) check_neuron_order(cut, index, *ffn);
        if (const auto* mamba = std::get_if<Mamba>(&layer)) check_head_order(cut, index, *mamba);
    }
}

}  // namespace

void prune(const Checkpoint& teacher, const StudentPlan& plan, const WidthScores* width,
           const std::string& model_card, const std::filesystem::path& out) {
    const Architecture& architecture = teacher.architecture();
    check_plan(plan, architecture, "plan");
    const Cut cut{.teacher = teacher, .plan = plan, .width = width, .kept = plan.kept(architecture)};
    check_orders(cut);

    const Architecture student = student_architecture(architecture, plan);
    OutgoingCheckpoint outgoing;
    outgoing.config = teacher.config();
    update_config(outgoing.config, student);
    for (const TensorSlot& slot : tensor_slots(student)) outgoing.tensors.push_back(cut_tensor(cut, slot));
    for (const StoredTensor& tensor : teacher.unknown()) outgoing.tensors.push_back(carried(tensor));
    outgoing.copies = teacher.other_files();
    if (!model_card.empty()) outgoing.texts["README.md"] = model_card;
    write_checkpoint(out, outgoing);
}

}  // namespace minipuzzle::nas
