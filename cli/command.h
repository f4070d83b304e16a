// What a command is to the program: a name, an option table, and a run that returns its result.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "cli/progress.h"
#include "runtime/artefact.h"
#include "runtime/run_control.h"

namespace minipuzzle::cli {

// Options of every command, accepted before and after its name.
struct GlobalOptions {
    std::string device = "auto", config;
    std::optional<uint64_t> seed;
    int64_t threads = 0;
    bool json = false, quiet = false, verbose = false;

    OptionTable options();
};

// The world of one run of a command.
struct Context {
    const GlobalOptions& globals;
    std::string command_line;  // as recorded in artefacts
    Console& console;
    RunControl control;

    uint64_t seed() const { return globals.seed.value_or(0); }
    Provenance provenance() const { return {command_line, seed()}; }
};

// What a command found: `json` is printed by --json, `text` otherwise.
struct CommandResult {
    Json json;
    std::string text;
    bool failed = false;  // the result is printed all the same; the program exits with 1
};

class Command {
  public:
    virtual ~Command() = default;
    virtual const char* name() const = 0;
    virtual const char* help() const = 0;
    // The table is bound to this command's fields.
    virtual OptionTable options() = 0;
    virtual CommandResult run(const Context& context) = 0;
};

// One of each, in the order of --help.
std::vector<std::unique_ptr<Command>> all_commands();

// The command line that asks for what `command` is set to: its options that differ from the defaults.
std::string command_line_of(Command& command, const GlobalOptions& globals);
// A word as a shell needs it.
std::string shell_quoted(const std::string& word);

}  // namespace minipuzzle::cli
