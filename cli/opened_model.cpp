#include "cli/opened_model.h"

#include <fmt/format.h>

#include <algorithm>

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
        double squares = 0;  // of a quantised matrix the scales': they follow its rows' largest values
        backend.run(SquaredNorm{.x = is_quantized(tensor) ? *info.scale : tensor, .out = &squares});
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

ModelSource::ModelSource(const std::string& folder, const WeightOptions& options, uint64_t seed)
    : name(folder) {
    if (folder.empty() == options.arch.empty()) fail_usage("give one of --model FOLDER and --arch NAME");
    if (options.random_weights != !options.arch.empty())
        fail_usage(
            "--arch NAME and --random-weights go together: a published architecture has no weights here");
    if (options.arch.empty()) {
        checkpoint.emplace(folder);
        architecture = checkpoint->architecture();
        source = checkpoint_source(*checkpoint);
    } else {
        architecture = named_architecture(options.arch);
        name = fmt::format("{} (random weights, seed {})", options.arch, seed);
        source = random_source(architecture, seed);
    }
}

DataReader ModelSource::reader() const {
    if (checkpoint) return {checkpoint->folder(), architecture, checkpoint->config()};
    return {std::filesystem::path(), architecture, Json::object()};
}

OpenedModel::OpenedModel(Backend& backend, const std::string& folder, const WeightOptions& options,
                         const Context& context)
    : model_(folder, options, context.seed()), weight_memory_(options.weight_memory) {
    place(backend, weight_memory_, options.number_format());
    context.console.detail(fmt::format("{}: {}", model_.name, where()));
    if (context.globals.verbose && options.random_weights)
        print_checksums(backend, model_.architecture, weights(), context.console);
}

void OpenedModel::place(Backend& backend, int64_t weight_memory, Precision precision) {
    if (weight_memory > 0)
        streamed_ = std::make_unique<StreamedWeights>(backend, model_.architecture, *model_.source,
                                                      model_.from(), weight_memory, precision);
    else
        resident_ = std::make_unique<WeightMemory>(
            load_weights(backend, model_.architecture, *model_.source, precision));
}

WeightSource OpenedModel::reload_unquantized(Backend& backend) {
    resident_.reset();
    streamed_.reset();
    const auto stream = [&](int64_t bytes) {
        const int64_t least =
            StreamedWeights::least_bytes(backend, model_.architecture, model_.from(), Precision::bf16);
        place(backend, std::max(bytes, least), Precision::bf16);
    };
    if (weight_memory_ > 0) {
        stream(weight_memory_);
        return weights();
    }
    try {
        place(backend, 0, Precision::bf16);
    } catch (const Error& error) {
        if (error.kind() != ErrorKind::out_of_memory) throw;
        stream(backend.available() / 2);  // the other half is for what the layers compute
    }
    return weights();
}

std::string OpenedModel::where() const {
    if (resident_) return fmt::format("weights take {} on the device", format_bytes(resident_->bytes()));
    return fmt::format("weights take {} on the device; {} of {} layers, {} a pass, are streamed",
                       format_bytes(streamed_->device_bytes()), streamed_->streamed_layers(),
                       model_.architecture.layers.size(), format_bytes(streamed_->streamed_bytes()));
}

WeightSource OpenedModel::weights() const {
    return resident_ ? WeightSource(resident_->weights()) : WeightSource(*streamed_);
}

int64_t OpenedModel::device_bytes() const {
    return resident_ ? resident_->bytes() : streamed_->device_bytes();
}

ModelIdentity OpenedModel::identity(bool full_hash) const {
    if (model_.checkpoint) return model_.checkpoint->identity(full_hash);
    return {.path = model_.name,
            .pattern = model_.architecture.pattern(),
            .arch_hash = arch_hash(model_.architecture),
            .weights_hash = model_.name};
}

}  // namespace minipuzzle::cli
