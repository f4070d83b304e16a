#include <fmt/format.h>

#include "kernels/check.h"
#include "runtime/architecture.h"
#include "runtime/artefact.h"

namespace minipuzzle {
namespace {

struct NamedConfig {
    const char* name;
    const char* text;  // config.json
};

// configs/architectures/*/config.json, put into the program when it is built, sorted by name.
constexpr NamedConfig kNamedConfigs[] = {
#include "named_architectures.inc"
};

}  // namespace

Architecture named_architecture(const std::string& name) {
    for (const NamedConfig& config : kNamedConfigs)
        if (config.name == name) return parse_architecture(parse_config_text(config.text, name), name);
    fail_usage(fmt::format("no architecture is named \"{}\"; known are {}", name,
                           fmt::join(architecture_names(), ", ")));
}

std::vector<std::string> architecture_names() {
    std::vector<std::string> names;
    for (const NamedConfig& config : kNamedConfigs) names.emplace_back(config.name);
    return names;
}

}  // namespace minipuzzle
