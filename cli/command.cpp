#include "cli/command.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/commands.h"

namespace minipuzzle::cli {

OptionTable GlobalOptions::options() {
    OptionTable table;
    table.text("device", "auto|cpu|cuda[:i]", device, "where to compute");
    table.count("seed", seed, "seed of every random choice [0]");
    table.count("threads", threads, "CPU threads; 0: every core the process may use");
    table.text("config", "FILE.yaml", config, "options from a file, same keys; the command line wins");
    table.flag("json", json, "print the result as JSON on stdout, nothing else");
    table.flag("quiet", quiet, "say nothing on stderr but errors", "q");
    table.flag("verbose", verbose, "say more on stderr", "v");
    return table;
}

void WorkloadOptions::add_to(OptionTable& table) {
    const std::vector<std::string> types = {"fp32", "bf16", "fp8", "fp4", "nvfp4"};
    std::vector<std::string> of_weights = types;
    of_weights.push_back("int4");
    std::vector<std::string> with_file = of_weights;
    with_file.insert(with_file.begin(), "file");
    table.count("context", context, "tokens of context that the deployed model holds", 1);
    table.count("batch", batch, "sequences that the deployed model holds", 1);
    table.word("weights", with_file, weights,
               "element type of the deployed weights; file: as they are stored");
    table.count("int4-group", int4_group, "weights of a row that share a bf16 scale in int4", 1);
    table.word("embeddings-type", of_weights, embeddings_type,
               "element type of the embeddings (and a head tied to them), where not as the other weights");
    table.word("head-type", of_weights, head_type, "of the LM head that is not tied");
    table.word("norms-type", of_weights, norms_type, "of the norms' weights");
    table.word("ssm-parameters-type", of_weights, ssm_parameters_type, "of A_log, D, dt_bias and conv1d");
    table.word("kv", types, kv, "element type of the attention cache");
    table.word("ssm", types, ssm, "element type of the Mamba state");
    table.word("conv", types, conv, "element type of the convolution state");
    table.bytes("buffers", buffers, "memory of anything else at run time");
    table.count("prefill-chunk", prefill_chunk,
                "count the workspace of a prefill of N tokens a sequence at a time (0: none)");
}

void WeightOptions::add_to(OptionTable& table) {
    table.text("arch", "NAME", arch, "or: a published architecture, with --random-weights");
    table.flag("random-weights", random_weights,
               "weights drawn from --seed and the tensors' names, to measure speed and memory");
    add_weight_memory(table, weight_memory);
    table.word("precision", {"bf16", "fp8"}, precision,
               "fp8: projections in E4M3 but for the first two and last two layers; bf16: none (float32 on "
               "the CPU)");
}

Precision WeightOptions::number_format() const {
    return precision == name(Precision::fp8) ? Precision::fp8 : Precision::bf16;
}

void add_weight_memory(OptionTable& table, int64_t& weight_memory) {
    table.bytes("weight-memory", weight_memory,
                "device memory for a model's weights; layers beyond it are streamed; 0: all stay there");
}

void TrainingOptions::add_to(OptionTable& table) {
    table.word("moments", {"f32", "bf16"}, moments, "the type that AdamW's moments are kept in");
    table.word(
        "recompute", {"auto", "none", "selective", "full"}, recompute,
        "what of a layer's activations its backward computes again; auto: as little as the memory takes");
    table.bytes("memory", memory, "the most device memory to use; 0: what is available");
    table.flag("no-deterministic", no_deterministic,
               "let attention's backward sum in any order where that is faster");
}

std::optional<Recompute> TrainingOptions::policy() const {
    for (Recompute policy : {Recompute::none, Recompute::selective, Recompute::full})
        if (recompute == minipuzzle::name(policy)) return policy;
    return std::nullopt;
}

void WindowOptions::add_to(OptionTable& table) {
    table.count("seq-len", seq_len, "predicted tokens a window; longer rows are cut", 1);
    table.count("samples", samples, "windows, in seeded order; 0: all");
}

std::vector<std::unique_ptr<Command>> all_commands() {
    std::vector<std::unique_ptr<Command>> commands;
    commands.push_back(std::make_unique<InspectCommand>());
    commands.push_back(std::make_unique<ScoreCommand>());
    commands.push_back(std::make_unique<SearchCommand>());
    commands.push_back(std::make_unique<PruneCommand>());
    commands.push_back(std::make_unique<DistillCommand>());
    commands.push_back(std::make_unique<EvalCommand>());
    commands.push_back(std::make_unique<BenchCommand>());
    commands.push_back(std::make_unique<ReportCommand>());
    commands.push_back(std::make_unique<RunCommand>());
    return commands;
}

std::string shell_quoted(const std::string& word) {
    const auto plain = [](char c) {
        return std::isalnum(static_cast<unsigned char>(c)) ||
               std::string_view("_-./=:,%+@").find(c) != std::string_view::npos;
    };
    if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) return word;
    std::string quoted = "'";
    for (char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return quoted + "'";
}

namespace {

std::string words_of(const Option& option, const Json& value) {
    if (option.arity == Arity::flag || (value.is_boolean() && value.get<bool>())) return "";
    const auto word = [](const Json& item) {
        return shell_quoted(item.is_string() ? item.get<std::string>() : item.dump());
    };
    if (!value.is_array()) return " " + word(value);
    const std::string separator = option.arity == Arity::many ? " " : ",";
    std::string words;
    for (const Json& item : value) words += (words.empty() ? "" : separator) + word(item);
    return " " + words;
}

}  // namespace

std::string command_line_of(Command& command, const GlobalOptions& globals) {
    std::string line = fmt::format("minipuzzle {}", command.name());
    for (const auto& fresh : all_commands()) {
        if (std::string_view(fresh->name()) != command.name()) continue;
        const Json defaults = fresh->options().to_json();
        const OptionTable table = command.options();
        for (const Option& option : table.options()) {
            const Json value = option.value();
            if (value == defaults[option.name] || option.name == "resume") continue;
            if (!option.positional) line += " --" + option.name;
            line += words_of(option, value);
        }
    }
    if (globals.seed) line += fmt::format(" --seed {}", *globals.seed);
    return line;
}

}  // namespace minipuzzle::cli
