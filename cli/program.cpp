#include "cli/program.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/command.h"
#include "cli/signals.h"
#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

constexpr const char* kDescription =
    "minipuzzle compresses hybrid Mamba-2 / attention / FFN language models (Hugging Face nemotron_h):\n"
    "a checkpoint and a memory budget in, a smaller checkpoint and the evidence for every choice out.";
constexpr const char* kFooter =
    "Sizes: 31.7GiB, 24GB, or a share of the teacher's total like 84%. Counts: k, M, B decimal, Ki, Mi "
    "binary.\n"
    "Data rows (JSONL): {\"text\": ...} or {\"tokens\": [...]}, with an optional \"source\"; or .txt, a "
    "document a file.\n"
    "Exit codes: 0 done, 2 usage, 3 bad input, 4 no student fits, 5 out of memory, 130 interrupted with "
    "state\n"
    "saved, 1 anything else.";

// A table's options as CLI11 reads them. Not movable: CLI11 keeps nothing of ours, but we keep its handles.
class Binding {
  public:
    Binding(CLI::App& app, OptionTable table) : table_(std::move(table)) {
        for (const Option& option : table_.options()) handles_.push_back(bind(app, option));
    }
    Binding(const Binding&) = delete;
    Binding& operator=(const Binding&) = delete;

    const OptionTable& table() const { return table_; }
    // Sets the options that the command line names.
    void set_given() const {
        for (std::size_t i = 0; i < handles_.size(); ++i)
            if (handles_[i]->count() > 0) table_.set(table_.options()[i], words(i));
    }

  private:
    static CLI::Option* bind(CLI::App& app, const Option& option);
    std::vector<std::string> words(std::size_t i) const {
        const Arity arity = table_.options()[i].arity;
        std::vector<std::string> results = handles_[i]->results();
        // A flag, or an option without its optional value, reads "true" or "" depending on CLI11's version.
        const bool bare = results.size() == 1 && (results[0].empty() || results[0] == "true");
        if (arity == Arity::flag || (arity == Arity::optional_one && bare)) return {};
        return results;
    }

    OptionTable table_;
    std::vector<CLI::Option*> handles_;
};

CLI::Option* Binding::bind(CLI::App& app, const Option& option) {
    std::string names = option.positional ? option.name : "--" + option.name;
    if (!option.short_names.empty()) names = "-" + option.short_names + "," + names;
    if (option.arity == Arity::flag) return app.add_flag(names, option.help);
    // Values are taken from the handle after parsing, so that a --config file can come first.
    CLI::Option* handle = app.add_option(
        names, [](const CLI::results_t&) { return true; }, option.help);
    if (option.arity == Arity::one) handle->expected(1);
    if (option.arity == Arity::optional_one) handle->expected(0, 1);
    if (option.arity == Arity::many) handle->expected(1, 1 << 20)->allow_extra_args(true);
    if (!option.metavar.empty()) {
        const Json value = option.value();
        const std::string fallback =
            value.is_null() || value.is_boolean()
                ? ""
                : " [" + (value.is_string() ? value.get<std::string>() : value.dump()) + "]";
        handle->option_text(option.metavar + fallback);
    }
    return handle;
}

struct BoundCommand {
    std::unique_ptr<Command> command;
    CLI::App* app = nullptr;
    std::unique_ptr<Binding> binding;
};

std::string one_line(std::string text) {
    for (char& c : text)
        if (c == '\n' || c == '\r') c = ' ';
    return text;
}

// --resume is left out: what is made must not depend on whether the run was ever stopped.
std::string recorded_command_line(int argc, char** argv) {
    std::string line = "minipuzzle";
    for (int i = 1; i < argc; ++i)
        if (std::string_view(argv[i]) != "--resume") line += " " + shell_quoted(argv[i]);
    return line;
}

// The config file's keys are the command's options and the global ones.
void apply_config(const std::string& path, const OptionTable& globals, const OptionTable& command) {
    const Json all = read_yaml(path);
    if (!all.is_object()) fail_input(path + ": found no keys, expected options and their values");
    Json for_globals = Json::object(), for_command = Json::object();
    for (const auto& [key, value] : all.items())
        (key != "config" && globals.find(key) ? for_globals : for_command)[key] = value;
    globals.apply(for_globals, path);
    command.apply(for_command, path);
}

Loudness loudness_of(const GlobalOptions& globals) {
    if (globals.quiet) return Loudness::quiet;
    return globals.verbose ? Loudness::verbose : Loudness::normal;
}

int run_command(Command& command, const GlobalOptions& globals, const std::string& command_line) {
    install_signal_handlers();
    Console console(loudness_of(globals));
    const Context context{
        .globals = globals,
        .command_line = command_line,
        .console = console,
        .control = {.progress = [&console](const ProgressUpdate& update) { console.update(update); },
                    .stop_requested = stop_requested}};
    const CommandResult result = command.run(context);
    console.finish();
    const std::string& text = globals.json ? result.json.dump(2) + "\n" : result.text;
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
        throw Error(ErrorKind::other, "cannot write the result to stdout");
    return result.failed ? static_cast<int>(ErrorKind::other) : 0;
}

}  // namespace

int run_program(int argc, char** argv) {
    CLI::App app(kDescription, "minipuzzle");
    app.footer(kFooter);
    app.set_version_flag("--version", std::string("minipuzzle ") + version());
    app.require_subcommand(1);

    GlobalOptions globals;
    Binding global_binding(app, globals.options());
    std::vector<BoundCommand> commands;
    for (auto& command : all_commands()) {
        CLI::App* sub = app.add_subcommand(command->name(), command->help());
        sub->fallthrough();
        sub->footer("Also --device, --seed, --threads, --config, --json, -q, -v: see minipuzzle --help");
        auto binding = std::make_unique<Binding>(*sub, command->options());
        commands.push_back({std::move(command), sub, std::move(binding)});
    }

    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
        fail_usage(one_line(error.what()) + "; see minipuzzle --help");
    }
    for (BoundCommand& bound : commands) {
        if (!bound.app->parsed()) continue;
        global_binding.set_given();
        if (!globals.config.empty())
            apply_config(globals.config, global_binding.table(), bound.binding->table());
        global_binding.set_given();
        bound.binding->set_given();
        return run_command(*bound.command, globals, recorded_command_line(argc, argv));
    }
    fail_usage("no command given; see minipuzzle --help");
}

}  // namespace minipuzzle::cli
