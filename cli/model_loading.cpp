#include "cli/model_loading.h"

#include <fmt/format.h>

#include <fstream>

#include "kernels/check.h"

namespace minipuzzle::cli {
namespace fs = std::filesystem;

std::unique_ptr<Backend> open_backend(const Context& context) {
    constexpr int64_t kMostThreads = 1024;
    if (context.globals.threads > kMostThreads)
        fail_usage(fmt::format("--threads: at most {}", kMostThreads));
    auto backend = make_backend(context.globals.device, narrow<int>(context.globals.threads));
    const std::string took = "device " + backend->name();
    if (context.globals.device == "auto")
        context.console.note(took);
    else
        context.console.detail(took);
    return backend;
}

namespace {

// The id that a config names; the first of a list; -1 for none.
int32_t special_token(const Json& config, const char* key, int64_t vocab) {
    const auto found = config.find(key);
    if (found == config.end()) return -1;
    const Json& id = found->is_array() && !found->empty() ? (*found)[0] : *found;
    if (!id.is_number_integer() || id.get<int64_t>() >= vocab) return -1;
    return narrow<int32_t>(id.get<int64_t>());
}

}  // namespace

DataReader::DataReader(const fs::path& folder, const Architecture& architecture, const Json& config)
    : vocab_(architecture.vocab) {
    const fs::path file = folder / "tokenizer.json";
    if (!folder.empty() && fs::exists(file)) tokenizer_.emplace(file);
    eos_ = special_token(config, "eos_token_id", vocab_);
    bos_ = special_token(config, "bos_token_id", vocab_);
    const auto longest = config.find("max_position_embeddings");
    if (longest != config.end() && longest->is_number_integer()) longest_ = longest->get<int64_t>();
}

TaskSet DataReader::tasks(const fs::path& path) const {
    return read_tasks(path, {.tokenizer = tokenizer_ ? &*tokenizer_ : nullptr,
                             .vocab = vocab_,
                             .prefix = bos_ >= 0 ? bos_ : eos_,
                             .longest = longest_});
}

TokenizerContext DataReader::context() const {
    return {.tokenizer = tokenizer_ ? &*tokenizer_ : nullptr, .vocab = vocab_, .eos = eos_};
}

ModelOrArch model_or_arch(const std::string& model, const std::string& arch) {
    if (model.empty() == arch.empty()) fail_usage("give one of --model FOLDER and --arch NAME");
    if (!arch.empty()) return {named_architecture(arch), std::nullopt, arch};
    Checkpoint checkpoint(model);
    Architecture architecture = checkpoint.architecture();
    return {std::move(architecture), std::move(checkpoint), model};
}

namespace {

std::optional<nas::ElementType> own_type(const std::string& text) {
    if (text.empty()) return std::nullopt;
    return nas::parse_element_type(text);
}

}  // namespace

nas::Workload workload_of(const WorkloadOptions& options, const Checkpoint* checkpoint) {
    nas::Workload workload{.context = options.context,
                           .batch = options.batch,
                           .kv = nas::parse_element_type(options.kv),
                           .ssm = nas::parse_element_type(options.ssm),
                           .conv = nas::parse_element_type(options.conv),
                           .buffers = options.buffers,
                           .prefill_chunk = options.prefill_chunk,
                           .int4_group = options.int4_group,
                           .embeddings = own_type(options.embeddings_type),
                           .head = own_type(options.head_type),
                           .norms = own_type(options.norms_type),
                           .ssm_parameters = own_type(options.ssm_parameters_type)};
    if (options.weights != "file") {
        workload.weights = nas::parse_element_type(options.weights);
    } else if (checkpoint) {
        workload.weights_as_in_file = true;
        workload.weight_dtypes = nas::dtypes_in_file(*checkpoint);
    }
    return workload;
}

std::string describe(const nas::Workload& workload) {
    std::string text =
        fmt::format("context {}, batch {}, weights {}, kv {}, ssm {}, conv {}, buffers {}", workload.context,
                    workload.batch,
                    workload.weights_as_in_file ? "as in the file" : std::string(nas::name(workload.weights)),
                    nas::name(workload.kv), nas::name(workload.ssm), nas::name(workload.conv),
                    format_bytes(workload.buffers));
    for (const nas::WeightPart part : nas::kWeightParts)
        if (const auto type = workload.type_of(part))
            text += fmt::format(", {} {}", nas::name(part), nas::name(*type));
    if (const Json json = nas::to_json(workload); json.contains("int4_group"))
        text += fmt::format(", int4 groups of {}", workload.int4_group);
    if (workload.prefill_chunk > 0) text += fmt::format(", prefill chunk {}", workload.prefill_chunk);
    return text;
}

nas::TypeCorrections type_corrections_of(const std::string& file, Objective objective) {
    return nas::fit_type_corrections(read_scores(file), objective, file);
}

std::optional<WidthScores> width_scores_beside(const fs::path& file, const std::string& name) {
    if (name.empty()) return std::nullopt;
    return read_width_scores(file.parent_path() / name);
}

std::string describe(const StudentPlan& plan, const Architecture& teacher) {
    int64_t dropped[3] = {};
    for (int64_t layer : plan.drop)
        ++dropped[static_cast<int>(type_of(teacher.layers[narrow<std::size_t>(layer)]))];
    std::string text = fmt::format("drops {} of {} layers ({} Mamba, {} attention, {} FFN)", plan.drop.size(),
                                   teacher.layers.size(), dropped[0], dropped[1], dropped[2]);
    if (plan.ffn_width) text += fmt::format(", FFN width {}", *plan.ffn_width);
    if (!plan.ffn_widths.empty()) text += ", FFN widths by layer";
    if (plan.mamba_heads_per_group)
        text += fmt::format(", {} Mamba heads a group", *plan.mamba_heads_per_group);
    return text;
}

void require_option(const Command& command, const std::string& name, bool given) {
    if (!given) fail_usage(fmt::format("{0} needs --{1}; see minipuzzle {0} --help", command.name(), name));
}

void check_output_file(const fs::path& path) {
    const fs::path parent = path.has_parent_path() ? path.parent_path() : fs::path(".");
    if (!fs::is_directory(parent))
        fail_input(fmt::format("{}: its folder does not exist, make it first", path.string()));
    if (!fs::exists(path)) return;
    constexpr std::size_t kOpening = 4096;  // every text file of ours names the program in its opening
    std::string opening(kOpening, '\0');
    std::ifstream stream(path, std::ios::binary);
    stream.read(opening.data(), narrow<std::streamsize>(opening.size()));
    opening.resize(narrow<std::size_t>(stream.gcount()));
    if (!fs::is_regular_file(path) || opening.find("minipuzzle") == std::string::npos)
        fail_input(
            fmt::format("{} exists and is not ours: choose another --out or remove it", path.string()));
}

void check_distinct(const std::string& out, const std::vector<std::string>& inputs) {
    std::error_code ignored;
    for (const std::string& input : inputs)
        if (!input.empty() && fs::equivalent(out, input, ignored))
            fail_usage(fmt::format("--out {} is also an input: choose another folder", out));
}

}  // namespace minipuzzle::cli
