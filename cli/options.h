// OptionTable: the one home of a command's options. Parsing, --help, --config, recipes and logs all go by it.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/units.h"
#include "runtime/artefact.h"

namespace minipuzzle::cli {

// How many values an option takes.
enum class Arity { flag, one, optional_one, many };

struct Option {
    std::string name;         // "seq-len", without dashes; also the key in files
    std::string short_names;  // "q" for -q, may be empty
    std::string metavar;      // "N", "SIZE", "FILE"
    std::string help;
    Arity arity = Arity::one;
    bool positional = false;
    std::function<void(const std::vector<std::string>&)> set;  // Error usage without the option's name
    std::function<Json()> value;                               // as logged; null where not given
};

// Options bound to the fields of one command. What a field holds when it is added is the option's default.
class OptionTable {
  public:
    void flag(const std::string& name, bool& field, const std::string& help,
              const std::string& short_names = "");
    void text(const std::string& name, const std::string& metavar, std::string& field,
              const std::string& help);
    void texts(const std::string& name, const std::string& metavar, std::vector<std::string>& field,
               const std::string& help);
    // One of the words listed.
    void word(const std::string& name, const std::vector<std::string>& words, std::string& field,
              const std::string& help);
    void count(const std::string& name, int64_t& field, const std::string& help, int64_t least = 0);
    void count(const std::string& name, std::optional<uint64_t>& field, const std::string& help);
    void count(const std::string& name, std::optional<int64_t>& field, const std::string& help);
    void bytes(const std::string& name, int64_t& field, const std::string& help);
    void number(const std::string& name, double& field, const std::string& help, double least = 0);
    void number(const std::string& name, std::optional<double>& field, const std::string& help,
                double least = 0);
    // A time, "25ms": in seconds.
    void seconds(const std::string& name, std::optional<double>& field, const std::string& help);
    void amount(const std::string& name, AmountOf unit, std::optional<Amount>& field,
                const std::string& help);
    void choices(const std::string& name, std::vector<int64_t>& field, const std::string& help);
    // A flag that may carry choices: `field` is nullopt until the option is given, empty without values.
    void optional_choices(const std::string& name, std::optional<std::vector<int64_t>>& field,
                          const std::string& help);
    // A flag that may carry a word: `field` is nullopt until the option is given, "" without the word.
    void optional_text(const std::string& name, const std::string& metavar, std::optional<std::string>& field,
                       const std::string& help);
    // Arguments without a name.
    void positional(const std::string& name, std::string& field, const std::string& help);
    void positionals(const std::string& name, std::vector<std::string>& field, const std::string& help);

    const std::vector<Option>& options() const { return options_; }
    const Option* find(const std::string& name) const;
    // Sets an option from the command line's words; messages open with the option's name.
    void set(const Option& option, const std::vector<std::string>& words) const;
    // Sets the options that a JSON object (a --config file, a recipe's section) names. Error bad_input where
    // a key is unknown, stands in `reserved`, or holds a value that does not parse; `where` opens the
    // message.
    void apply(const Json& section, const std::string& where,
               const std::vector<std::string>& reserved = {}) const;
    // {"seq-len": 512, ...}: every option with its value, for run logs and for telling runs apart.
    Json to_json() const;

  private:
    Option& add(Option option);
    std::vector<Option> options_;
};

}  // namespace minipuzzle::cli
