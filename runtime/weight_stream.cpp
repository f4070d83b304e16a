#include "runtime/weight_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "runtime/layer_reader.h"

namespace minipuzzle {

namespace {

constexpr int64_t kSlots = 2;

double gibibytes(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

// A model's parameters, by the layer they travel with.
struct ByLayer {
    Weights weights;
    std::vector<LayerParameters> layers;  // per layer of the model
    LayerParameters outside;              // embeddings, final norm, head

    ByLayer(const Backend& backend, const Architecture& architecture, Precision precision)
        : weights(shaped_weights(backend, architecture, precision)), layers(architecture.layers.size()) {
        for_each_parameter(architecture, weights, [&](const ParameterInfo& info, Tensor& tensor) {
            (info.slot.layer < 0 ? outside : layers[info.slot.layer]).add(info, tensor);
        });
    }
    ByLayer(const ByLayer&) = delete;  // the layers point into the weights
    ByLayer& operator=(const ByLayer&) = delete;
};

// What lies where, before there is memory.
struct StreamLayout {
    ByLayer model;
    std::optional<ByLayer> arriving;  // as layers travel, where they are quantised on arrival
    int64_t slot_bytes = 0;
    int64_t quantized_bytes = 0;  // room for one layer's quantised tensors, beside the slots

    StreamLayout(const Backend& backend, const Architecture& architecture, StreamFrom from,
                 Precision precision)
        : model(backend, architecture, precision) {
        if (precision == Precision::fp8 && from == StreamFrom::source)
            arriving.emplace(backend, architecture, Precision::bf16);
        for (std::size_t l = 0; l < model.layers.size(); ++l) {
            slot_bytes = std::max(slot_bytes, travelling(static_cast<int64_t>(l)).bytes());
            if (arriving) quantized_bytes = std::max(quantized_bytes, model.layers[l].quantized_bytes());
        }
    }
    const LayerParameters& travelling(int64_t layer) const {
        return (arriving ? *arriving : model).layers[layer];
    }
    int64_t least_bytes() const { return model.outside.bytes() + kSlots * slot_bytes + quantized_bytes; }
};

}  // namespace

struct StreamedWeights::State : StreamLayout {
    Backend& backend;
    std::vector<int64_t> order;  // the streamed layers, ascending
    std::byte *resident = nullptr, *slots = nullptr, *quantized = nullptr;
    int64_t resident_bytes = 0;
    std::unique_ptr<LayerReader> reader;
    std::unique_ptr<CopyQueue> copies;
    bool overlap = true;
    // Transfers are counted through all passes: the n-th is layer order[n % size] into slot n % 2.
    int64_t current = -1, started = 0;
    CopyQueue::Ticket tickets[kSlots] = {};

    State(Backend& b, const Architecture& architecture, StreamFrom from, Precision precision)
        : StreamLayout(b, architecture, from, precision), backend(b) {}
    ~State() {
        backend.synchronize();
        // Copies run in order, so after the last one nobody reads the reader's memory.
        if (started > 0) copies->host_wait(tickets[(started - 1) % kSlots]);
        reader.reset();
        copies.reset();
        if (quantized) backend.free(quantized);
        if (slots) backend.free(slots);
        if (resident) backend.free(resident);
    }

    int64_t layer_of(int64_t transfer) const { return order[transfer % std::ssize(order)]; }
    std::byte* slot_of(int64_t transfer) const { return slots + transfer % kSlots * slot_bytes; }
    std::vector<LayerParameters> streamed() const {
        std::vector<LayerParameters> streamed;
        for (int64_t layer : order) streamed.push_back(travelling(layer));
        return streamed;
    }
    bool streams(int64_t layer) const { return std::binary_search(order.begin(), order.end(), layer); }
    const LayerParameters& travelling(int64_t layer) const {
        return (arriving ? *arriving : model).layers[layer];
    }

    int64_t least_bytes() const { return model.outside.bytes() + kSlots * slot_bytes + quantized_bytes; }
    void choose(int64_t device_bytes);
    int64_t streamed_bytes() const;
    int64_t device_bytes() const;
    void place_resident(const ParameterSource& source);
    void start_up_to(int64_t transfer);
};

// Which layers stay: of each stretch of layers the share that the budget holds, so that they alternate.
void StreamedWeights::State::choose(int64_t device_bytes) {
    const std::vector<LayerParameters>& layers = model.layers;
    int64_t all = 0;
    for (const LayerParameters& layer : layers) all += layer.bytes();
    const int64_t room = device_bytes - least_bytes();
    if (room < 0)
        fail_usage(fmt::format(
            "--weight-memory is {} bytes, but embeddings, head and two layers take {}: give "
            "at least {:.2f} GiB",
            device_bytes, device_bytes - room, std::ceil(100 * gibibytes(device_bytes - room)) / 100));
    const double share = std::min(1.0, static_cast<double>(room) / static_cast<double>(all));
    double earned = 0;
    for (std::size_t l = 0; l < layers.size(); ++l) {
        const double bytes = static_cast<double>(layers[l].bytes());
        earned += share * bytes;
        if (share < 1 && earned < bytes)
            order.push_back(static_cast<int64_t>(l));
        else
            earned -= bytes;
    }
    resident_bytes = model.outside.bytes();
    for (std::size_t l = 0; l < layers.size(); ++l)
        if (!streams(static_cast<int64_t>(l))) resident_bytes += layers[l].bytes();
}

int64_t StreamedWeights::State::streamed_bytes() const {
    int64_t bytes = 0;
    for (int64_t layer : order) bytes += travelling(layer).bytes();
    return bytes;
}

int64_t StreamedWeights::State::device_bytes() const {
    return resident_bytes + (order.empty() ? 0 : kSlots * slot_bytes + quantized_bytes);
}

void StreamedWeights::State::place_resident(const ParameterSource& source) {
    const std::vector<LayerParameters>& layers = model.layers;
    resident = backend.allocate(resident_bytes);
    std::byte* next = resident;
    ParameterFiller filler(backend, source);
    const auto place = [&](const LayerParameters& parameters) {
        parameters.place(next);
        parameters.fill(filler);
        next += parameters.bytes();
    };
    place(model.outside);
    for (std::size_t l = 0; l < layers.size(); ++l)
        if (!streams(static_cast<int64_t>(l))) place(layers[l]);
}

// Starts the transfers up to that one. Each waits for the operations given so far, the last that read its
// slot among them.
void StreamedWeights::State::start_up_to(int64_t transfer) {
    for (; started <= transfer; ++started) {
        const int64_t layer = layer_of(started);
        const std::byte* host = reader->acquire(layer);
        tickets[started % kSlots] = copies->copy(slot_of(started), host, travelling(layer).bytes());
        reader->release(tickets[started % kSlots]);
    }
}

StreamedWeights::StreamedWeights(Backend& backend, const Architecture& architecture,
                                 const ParameterSource& source, StreamFrom from, int64_t device_bytes,
                                 Precision precision)
    : state_(std::make_unique<State>(backend, architecture, from, precision)) {
    State& state = *state_;
    state.choose(device_bytes);
    state.place_resident(source);
    Weights& weights = state.model.weights;
    if (architecture.tied_embeddings) weights.lm_head = weights.embeddings;
    if (state.order.empty()) return;
    state.slots = backend.allocate(kSlots * state.slot_bytes);
    if (state.quantized_bytes > 0) state.quantized = backend.allocate(state.quantized_bytes);
    state.copies = backend.make_copy_queue();
    const std::vector<LayerParameters> streamed = state.streamed();
    state.reader = from == StreamFrom::pinned_memory
                       ? read_from_memory(backend, source, state.order, streamed, state.slots)
                       : read_ahead(backend, source, state.order, streamed, *state.copies, state.slots);
}
StreamedWeights::~StreamedWeights() = default;

int64_t StreamedWeights::least_bytes(const Backend& backend, const Architecture& architecture,
                                     StreamFrom from, Precision precision) {
    return StreamLayout(backend, architecture, from, precision).least_bytes();
}

const Weights& StreamedWeights::weights() const { return state_->model.weights; }
void StreamedWeights::set_overlap(bool overlap) { state_->overlap = overlap; }
int64_t StreamedWeights::device_bytes() const { return state_->device_bytes(); }
int64_t StreamedWeights::streamed_layers() const { return std::ssize(state_->order); }
int64_t StreamedWeights::streamed_bytes() const { return state_->streamed_bytes(); }

StreamPlan StreamedWeights::plan(const Backend& backend, const Architecture& architecture, StreamFrom from,
                                 int64_t device_bytes, Precision precision) {
    const auto measuring = backend.measuring();
    State state(*measuring, architecture, from, precision);
    state.choose(device_bytes);
    const int64_t streamed = state.streamed_bytes();
    return {.device_bytes = state.device_bytes(),
            .pinned_bytes = from == StreamFrom::pinned_memory ? streamed : read_ahead_bytes(state.streamed()),
            .streamed_layers = std::ssize(state.order),
            .streamed_bytes = streamed};
}

void StreamedWeights::use(int64_t layer) {
    State& state = *state_;
    if (!state.streams(layer)) return;
    if (state.current >= 0 && state.layer_of(state.current) == layer) return;
    do ++state.current;
    while (state.layer_of(state.current) != layer);
    state.start_up_to(state.current);
    if (state.overlap) state.start_up_to(state.current + 1);
    state.copies->operations_wait(state.tickets[state.current % kSlots]);
    state.travelling(layer).place(state.slot_of(state.current));
    if (state.arriving)
        state.model.layers[layer].quantize_from(state.backend, state.travelling(layer), state.quantized);
}

}  // namespace minipuzzle
