#include "cli/opened_model.h"

#include <fmt/format.h>

#include "cli/units.h"
#include "kernels/check.h"

namespace minipuzzle::cli {
namespace {

// The sum of squares of a layer's parameters, in a fixed order: two layers of one model differ in it, two
// runs do not.
double checksum(Backend& backend, const Architecture& architecture, const WeightSource& source,
                int64_t layer) {
    source.use(layer);
    Weights weights = *source;
    double sum = 0;
    for_each_parameter(architecture, weights, [&](const ParameterInfo& info, Tensor& tensor) {
        if (info.slot.layer != layer) return;
        double squares = 0;
        backend.run(SquaredNorm{.x = tensor, .out = &squares});
        sum += squares;
    });
    return sum;
}

void print_checksums(Backend& backend, const Architecture& architecture, const WeightSource& source,
                     Console& console) {
    for (int64_t layer = 0; layer < std::ssize(architecture.layers); ++layer)
        console.detail(fmt::format("layer {:3} {:9} checksum {:.17g}", layer,
                                   name(type_of(architecture.layers[layer])),
                                   checksum(backend, architecture, source, layer)));
}

}  // namespace

OpenedModel::OpenedModel(Backend& backend, const std::string& folder, const WeightOptions& options,
                         const Context& context)
    : name_(folder) {
    if (folder.empty() == options.arch.empty()) fail_usage("give one of --model FOLDER and --arch NAME");
    if (options.random_weights != !options.arch.empty())
        fail_usage(
            "--arch NAME and --random-weights go together: a published architecture has no weights here");
    if (options.arch.empty()) {
        checkpoint_.emplace(folder);
        architecture_ = checkpoint_->architecture();
        source_ = checkpoint_source(*checkpoint_);
    } else {
        architecture_ = named_architecture(options.arch);
        name_ = fmt::format("{} (random weights, seed {})", options.arch, context.seed());
        source_ = random_source(architecture_, context.seed());
    }
    place(backend, options.weight_memory);
    context.console.detail(fmt::format("{}: {}", name_, where()));
    if (context.globals.verbose && options.random_weights)
        print_checksums(backend, architecture_, weights(), context.console);
}

void OpenedModel::place(Backend& backend, int64_t weight_memory) {
    if (weight_memory > 0)
        streamed_ = std::make_unique<StreamedWeights>(
            backend, architecture_, *source_, checkpoint_ ? StreamFrom::source : StreamFrom::pinned_memory,
            weight_memory);
    else
        resident_ = std::make_unique<WeightMemory>(load_weights(backend, architecture_, *source_));
}

std::string OpenedModel::where() const {
    if (resident_) return fmt::format("weights take {} on the device", format_bytes(resident_->bytes()));
    return fmt::format("weights take {} on the device; {} of {} layers, {} a pass, are streamed",
                       format_bytes(streamed_->device_bytes()), streamed_->streamed_layers(),
                       architecture_.layers.size(), format_bytes(streamed_->streamed_bytes()));
}

WeightSource OpenedModel::weights() const {
    return resident_ ? WeightSource(resident_->weights()) : WeightSource(*streamed_);
}

int64_t OpenedModel::device_bytes() const {
    return resident_ ? resident_->bytes() : streamed_->device_bytes();
}

ModelIdentity OpenedModel::identity(bool full_hash) const {
    if (checkpoint_) return checkpoint_->identity(full_hash);
    return {.path = name_,
            .pattern = architecture_.pattern(),
            .arch_hash = arch_hash(architecture_),
            .weights_hash = name_};
}

DataReader OpenedModel::reader() const {
    if (checkpoint_) return {checkpoint_->folder(), architecture_, checkpoint_->config()};
    return {std::filesystem::path(), architecture_, Json::object()};
}

}  // namespace minipuzzle::cli
