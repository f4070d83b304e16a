#include "runtime/weight_stream.h"

#include <algorithm>

#include "runtime/evaluate.h"
#include "runtime/weight_source.h"
#include "tests/catch.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

using namespace minipuzzle;

namespace {

std::vector<float> logits(Backend& backend, const Architecture& architecture, WeightSource weights) {
    return logits_of(backend, {architecture, weights}, {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5});
}

struct StreamWorld {
    std::unique_ptr<Backend> backend = make_cpu_backend(DType::f32, 2);
    Architecture architecture = test::tiny_architecture("M-*M-M-*-M");
    std::unique_ptr<ParameterSource> source = random_source(architecture, 7, 0.2);

    // What must be on the device: embeddings, head, final norm and two of the largest layer, by the error's
    // words.
    int64_t least(StreamFrom from = StreamFrom::source, Precision precision = Precision::bf16) {
        try {
            StreamedWeights(*backend, architecture, *source, from, 1, precision);
        } catch (const Error& error) {
            CHECK(error.kind() == ErrorKind::usage);
            const std::string message = error.what(), before = "two layers take ";
            return std::stoll(message.substr(message.find(before) + before.size()));
        }
        FAIL("no error for one byte");
        return 0;
    }
};

}  // namespace

TEST_CASE("streamed weights give the bits of resident ones, pass after pass, whatever the budget") {
    StreamWorld world;
    int64_t most_streamed = 0;
    for (const Precision precision : {Precision::bf16, Precision::fp8}) {
        const WeightMemory resident =
            load_weights(*world.backend, world.architecture, *world.source, precision);
        const auto expected = logits(*world.backend, world.architecture, resident.weights());
        for (const StreamFrom from : {StreamFrom::pinned_memory, StreamFrom::source})
            for (const int64_t more : {0, 7'000, 12'000, 1'000'000}) {
                const int64_t budget = world.least(from, precision) + more;
                CAPTURE(budget, name(precision));
                CHECK(world.least(from, precision) ==
                      StreamedWeights::least_bytes(*world.backend, world.architecture, from, precision));
                StreamedWeights streamed(*world.backend, world.architecture, *world.source, from, budget,
                                         precision);
                CHECK(streamed.device_bytes() <= budget);
                most_streamed = std::max(most_streamed, streamed.streamed_layers());
                for (int pass = 0; pass < 3; ++pass) {
                    streamed.set_overlap(pass != 1);
                    CHECK(logits(*world.backend, world.architecture, streamed) == expected);
                }
            }
    }
    CHECK(most_streamed >= 8);
    StreamedWeights everything(*world.backend, world.architecture, *world.source, StreamFrom::source,
                               1 << 24);
    CHECK(everything.streamed_layers() == 0);
    CHECK(everything.streamed_bytes() == 0);
}

TEST_CASE("quantised layers take fewer bytes on the device, and on the way there from pinned memory") {
    StreamWorld world;
    const auto streamed_bytes = [&](StreamFrom from, Precision precision) {
        const StreamedWeights streamed(*world.backend, world.architecture, *world.source, from,
                                       world.least(from, precision), precision);
        CHECK(streamed.streamed_layers() == std::ssize(world.architecture.layers));
        return streamed.streamed_bytes();
    };
    WeightMemory exact(*world.backend, world.architecture, Precision::bf16);
    WeightMemory narrow(*world.backend, world.architecture, Precision::fp8);
    int64_t saved = 0;  // float32 becomes one byte and a float32 a row
    for_each_parameter(world.architecture, narrow.weights(), [&](const ParameterInfo& info, Tensor& tensor) {
        CHECK(is_quantized(tensor) == (info.scale && *info.scale));
        if (!is_quantized(tensor)) return;
        CHECK(info.slot.layer >= 2);
        CHECK(info.slot.layer < 8);
        Tensor values = tensor;
        values.dtype = DType::f32;
        saved += aligned_bytes(values) - aligned_bytes(tensor) - aligned_bytes(*info.scale);
    });
    CHECK(saved > 0);
    CHECK(exact.bytes() - narrow.bytes() == saved);
    CHECK(streamed_bytes(StreamFrom::pinned_memory, Precision::bf16) -
              streamed_bytes(StreamFrom::pinned_memory, Precision::fp8) ==
          saved);
    CHECK(streamed_bytes(StreamFrom::source, Precision::bf16) ==
          streamed_bytes(StreamFrom::source, Precision::fp8));
}

TEST_CASE("a pass that breaks off leaves the stream usable") {
    StreamWorld world;
    const WeightMemory resident = load_weights(*world.backend, world.architecture, *world.source);
    StreamedWeights streamed(*world.backend, world.architecture, *world.source, StreamFrom::source,
                             world.least());
    for (const int64_t layer : {0, 1, 2, 5, 1, 9, 3}) streamed.use(layer);
    CHECK(logits(*world.backend, world.architecture, streamed) ==
          logits(*world.backend, world.architecture, resident.weights()));
}

TEST_CASE("a checkpoint streams from its files") {
    StreamWorld world;
    const test::TempDir scratch;
    test::write_tiny_model(scratch.path() / "model", world.architecture);
    const Checkpoint checkpoint(scratch.path() / "model");
    const WeightMemory resident = load_weights(*world.backend, checkpoint);
    const auto source = checkpoint_source(checkpoint);
    StreamedWeights streamed(*world.backend, world.architecture, *source, StreamFrom::source, world.least());
    CHECK(logits(*world.backend, world.architecture, streamed) ==
          logits(*world.backend, world.architecture, resident.weights()));
}

TEST_CASE(
    "random parameters are the same read on the host and drawn on the backend, and no two layers agree") {
    StreamWorld world;
    WeightMemory drawn = load_weights(*world.backend, world.architecture, *world.source);
    std::vector<std::vector<float>> in_projs;
    for_each_parameter(world.architecture, drawn.weights(), [&](const ParameterInfo& info, Tensor& tensor) {
        std::vector<float> read(tensor.elements());
        world.source->read(info, DType::f32, reinterpret_cast<std::byte*>(read.data()));
        CHECK(read == to_host(*world.backend, tensor));
        if (info.slot.name.ends_with("in_proj.weight")) in_projs.push_back(read);
    });
    REQUIRE(in_projs.size() == 4);
    for (std::size_t i = 1; i < in_projs.size(); ++i) CHECK(in_projs[i] != in_projs[0]);
}
