#include "nas/layer_timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <numeric>

#include "kernels/check.h"
#include "kernels/random.h"
#include "runtime/arena.h"
#include "runtime/ffn_slice.h"
#include "runtime/hybrid_model.h"
#include "runtime/student_plan.h"

namespace minipuzzle::nas {

namespace {

constexpr int kRounds = 11;      // at most
constexpr int kLeastRounds = 3;  // of a slow device
constexpr double kEnough = 60;   // seconds of rounds; no new one is begun after that

// What is timed: layers one after the other, or whole passes.
struct Job {
    std::function<void()> run;
    double parts = 1;           // the time is divided by it
    std::vector<double> times;  // ms, of each round

    double seconds() const {
        std::vector<double> sorted = times;
        std::sort(sorted.begin(), sorted.end());
        return 1e-3 * sorted[sorted.size() / 2] / parts;
    }
};

std::vector<int32_t> random_tokens(int64_t vocab, int64_t count, uint64_t seed) {
    const CounterRandom random(seed, "layer timing tokens");
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i)
        tokens.push_back(
            static_cast<int32_t>(random.bits(static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab)));
    return tokens;
}

// Layers of each size, in order of first appearance.
std::vector<std::vector<int64_t>> layers_by_size(const Architecture& architecture) {
    std::vector<std::vector<int64_t>> groups;
    for (int64_t l = 0; l < std::ssize(architecture.layers); ++l) {
        const auto same = [&](const std::vector<int64_t>& group) {
            return architecture.layers[group.front()] == architecture.layers[l];
        };
        const auto found = std::find_if(groups.begin(), groups.end(), same);
        if (found == groups.end())
            groups.push_back({l});
        else
            found->push_back(l);
    }
    return groups;
}

std::vector<int64_t> every_second_of_each_type(const Architecture& architecture) {
    std::vector<int64_t> drop;
    std::map<LayerType, int64_t> seen;
    for (int64_t l = 0; l < std::ssize(architecture.layers); ++l)
        if (seen[type_of(architecture.layers[l])]++ % 2 == 1) drop.push_back(l);
    return drop;
}

class Bench {
  public:
    Bench(Backend& on, DeviceArena& arena, const Architecture& architecture, WeightSource weights,
          const LatencyWorkload& workload, uint64_t seed)
        : on_(on),
          arena_(arena),
          architecture_(architecture),
          weights_(weights),
          workload_(workload),
          model_(on, arena, architecture, weights),
          tokens_(arena.take("tokens", {workload.batch, workload.prefill}, DType::i32)),
          in_(arena.take("hidden", {workload.batch, workload.prefill, architecture.width})),
          out_(arena.take("next hidden", {workload.batch, workload.prefill, architecture.width})),
          last_(arena.take("last hidden", {workload.batch, 1, architecture.width})),
          logits_(arena.take("logits", {workload.batch, 1, architecture.vocab},
                             precise_type(on.compute_type()))) {
        const auto ids = random_tokens(architecture.vocab, workload.batch * workload.prefill, seed);
        on.copy(tokens_.data, reinterpret_cast<const std::byte*>(ids.data()), tokens_.bytes());
    }

    // Adds every job; the table gets its layers without times.
    void prepare(LatencyTable& table) {
        jobs_.push_back({.run = [this] { outer(); }});
        for (const std::vector<int64_t>& group : layers_by_size(architecture_)) {
            table.layers.push_back({.layer = architecture_.layers[group.front()]});
            add_layers(group);
            if (type_of(architecture_.layers[group.front()]) == LayerType::ffn) add_widths(group, table);
        }
        for (const std::vector<int64_t>& drop :
             {std::vector<int64_t>(), every_second_of_each_type(architecture_)}) {
            if (drop.empty() && !table.checks.empty()) continue;  // no type has two layers
            table.checks.push_back({.drop = drop});
            jobs_.push_back({.run = [this, drop] { whole_pass(drop); }});
        }
    }

    // Every job once; the times are kept unless the round only warms up. In a dry run the jobs are wired.
    void round(bool keep) {
        for (Job& job : jobs_) {
            if (arena_.is_measuring()) {
                job.run();
                continue;
            }
            const double ms = on_.elapsed_ms(job.run);
            if (keep) job.times.push_back(ms);
        }
    }

    void read(LatencyTable& table) const {
        std::size_t job = 0;
        table.outer = jobs_[job++].seconds();
        for (LayerTime& time : table.layers) time.seconds = jobs_[job++].seconds();
        for (LatencyCheck& check : table.checks) {
            check.measured = jobs_[job++].seconds();
            StudentPlan plan;
            plan.drop = check.drop;
            check.predicted = table.seconds(student_architecture(architecture_, plan));
        }
    }

  private:
    void add_layers(const std::vector<int64_t>& group) {
        const std::vector<int64_t> turns(group.begin(),
                                         group.begin() + std::min<int64_t>(kRotated, std::ssize(group)));
        jobs_.push_back({.run =
                             [this, turns] {
                                 for (const int64_t layer : turns) model_.apply(layer, in_, out_);
                             },
                         .parts = static_cast<double>(turns.size())});
    }

    // Which neurons are kept does not matter to the time: the first ones.
    void add_widths(const std::vector<int64_t>& group, LatencyTable& table) {
        for (const int64_t width : workload_.ffn_widths) {
            if (width >= std::get<Ffn>(architecture_.layers[group.front()]).width) continue;
            std::vector<int32_t> neurons(width);
            std::iota(neurons.begin(), neurons.end(), 0);
            std::vector<FfnWeights> turns;
            for (std::size_t i = 0; i < std::min<std::size_t>(kRotated, group.size()); ++i)
                turns.push_back(slice_ffn(on_, arena_, std::get<FfnWeights>(model_.use(group[i])), neurons));
            table.layers.push_back({.layer = Ffn{.width = width}});
            jobs_.push_back({.run =
                                 [this, turns] {
                                     for (const FfnWeights& ffn : turns) model_.apply_ffn(ffn, in_, out_);
                                 },
                             .parts = static_cast<double>(turns.size())});
        }
    }

    void head(const Tensor& hidden) {
        const int64_t row = architecture_.width * bytes_of(hidden.dtype);
        for (int64_t b = 0; b < workload_.batch && !arena_.is_measuring(); ++b)
            on_.copy(last_.data + b * row, hidden.data + ((b + 1) * workload_.prefill - 1) * row, row);
        model_.final_norm(last_, last_);
        on_.run(LinearForward{.x = last_, .weight = weights_->lm_head, .out = logits_});
    }
    void outer() {
        model_.embed(tokens_, in_);
        head(in_);
    }
    void whole_pass(const std::vector<int64_t>& drop) {
        model_.embed(tokens_, out_);
        for (int64_t l = 0; l < std::ssize(architecture_.layers); ++l)
            if (!std::binary_search(drop.begin(), drop.end(), l)) model_.apply(l, out_, out_);
        head(out_);
    }

    Backend& on_;
    DeviceArena& arena_;
    const Architecture& architecture_;
    WeightSource weights_;
    const LatencyWorkload& workload_;
    HybridModel model_;
    Tensor tokens_, in_, out_, last_, logits_;
    std::vector<Job> jobs_;
};

void check_widths(const Architecture& architecture, const std::vector<int64_t>& widths) {
    int64_t widest = 1;
    for (const Layer& layer : architecture.layers)
        if (const auto* ffn = std::get_if<Ffn>(&layer)) widest = std::max(widest, ffn->width);
    for (const int64_t width : widths)
        if (width < 1 || width > widest)
            fail_usage(fmt::format("--ffn-widths {}: expected 1..{}, the model's own width", width, widest));
}

}  // namespace

LatencyTable time_layers(Backend& backend, const Architecture& architecture, WeightSource weights,
                         const LatencyWorkload& workload, uint64_t seed, const RunControl& control) {
    check_widths(architecture, workload.ffn_widths);
    LatencyTable result;
    MeasuredRunner(backend).run([&](Backend& on, DeviceArena& arena) {
        Bench bench(on, arena, architecture, weights, workload, seed);
        LatencyTable table{.prefill = workload.prefill, .batch = workload.batch};
        bench.prepare(table);
        bench.round(false);
        if (arena.is_measuring()) return;
        const auto start = std::chrono::steady_clock::now();
        const auto spent = [&] {
            return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        };
        for (int round = 0; round < kRounds && (round < kLeastRounds || spent() < kEnough); ++round) {
            if (control.stopping()) throw Interrupted{"the timing was stopped; nothing was kept"};
            bench.round(true);
            control.report({.what = "timing",
                            .done = static_cast<double>(round + 1),
                            .total = kRounds,
                            .unit = "rounds",
                            .detail = ""});
        }
        bench.read(table);
        result = std::move(table);
    });
    result.device = backend.name();
    result.precision = backend.compute_type() == DType::bf16 ? "bf16" : "fp32";
    return result;
}

}  // namespace minipuzzle::nas
