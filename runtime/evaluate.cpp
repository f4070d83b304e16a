#include "runtime/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/batch_size.h"

namespace minipuzzle {

namespace {

constexpr int64_t kHostBatchTokens = 4096;

// The last hidden states of [B, T] tokens, after the final norm, as [B*T, D].
Tensor last_hidden(Backend& backend, DeviceArena& arena, const EvaluatedModel& model, const Tensor& tokens) {
    const Architecture& architecture = model.architecture;
    const int64_t batch = tokens.size(0), length = tokens.size(1);
    const Tensor hidden = arena.take("hidden", {batch, length, architecture.width});
    HybridModel layers(backend, arena, architecture, model.weights);
    layers.embed(tokens, hidden);
    for (std::size_t l = 0; l < architecture.layers.size(); ++l)
        layers.apply(static_cast<int64_t>(l), hidden, hidden);
    layers.final_norm(hidden, hidden);
    return hidden.view({batch * length, architecture.width});
}

Tensor upload(Backend& backend, DeviceArena& arena, const char* name, const std::vector<int32_t>& values,
              int64_t batch, int64_t length) {
    const Tensor tensor = arena.take(name, {batch, length}, DType::i32);
    backend.copy(tensor.data, reinterpret_cast<const std::byte*>(values.data()), tensor.bytes());
    return tensor;
}

// Per-token results of one batch on the host; kl and agrees are empty without a reference.
struct TokenResults {
    std::vector<float> loss, correct, kl, agrees;
};

void compare_batch(Backend& on, DeviceArena& arena, const EvaluatedModel& model,
                   const EvaluatedModel* reference, const WindowBatch& batch, TokenResults& results) {
    const int64_t rows = batch.batch * batch.length;
    const Tensor tokens = upload(on, arena, "tokens", batch.tokens, batch.batch, batch.length);
    const Tensor targets =
        upload(on, arena, "targets", batch.targets, batch.batch, batch.length).view({rows});
    const auto take = [&] {
        return arena.take("per-token metrics", {rows}, precise_type(on.compute_type()));
    };
    CompareLogits compare{.base = {}, .targets = targets};
    compare.sequence_length = batch.length;
    const LmHead head{.hidden = last_hidden(on, arena, model, tokens), .head = model.weights->lm_head};
    Tensor loss = take(), correct = take(), kl, agrees;
    if (reference) {
        kl = take(), agrees = take();
        compare.base = {.hidden = last_hidden(on, arena, *reference, tokens),
                        .head = reference->weights->lm_head};
        compare.variants.push_back(
            {.variant = head, .loss = loss, .correct = correct, .kl = kl, .agrees = agrees});
    } else {
        compare.base = head;
        compare.base_loss = loss;
        compare.base_correct = correct;
    }
    on.run(compare);
    if (arena.is_measuring()) return;
    results.loss = to_host(on, loss);
    results.correct = to_host(on, correct);
    if (reference) results.kl = to_host(on, kl), results.agrees = to_host(on, agrees);
}

// Sums over the predicted tokens of one window.
double window_sum(const std::vector<float>& per_token, int64_t window, int64_t length) {
    double sum = 0;
    for (int64_t t = 0; t < length; ++t) sum += per_token[window * length + t];
    return sum;
}

// Per-window sums, kept in window order so that totals do not depend on how windows were batched.
struct WindowSums {
    double loss = 0, correct = 0, kl = 0, agrees = 0;
};

Evaluation total(const std::vector<WindowSums>& sums, const Corpus& corpus,
                 const std::vector<Window>& windows, bool with_reference) {
    Evaluation evaluation;
    double loss = 0, correct = 0, kl = 0, agrees = 0;
    for (std::size_t i = 0; i < windows.size(); ++i) {
        loss += sums[i].loss, correct += sums[i].correct, kl += sums[i].kl, agrees += sums[i].agrees;
        evaluation.tokens += windows[i].length;
        evaluation.per_sequence_loss.push_back(sums[i].loss / static_cast<double>(windows[i].length));
        SourceLoss& source = evaluation.per_source[corpus.documents()[windows[i].document].source];
        source.loss += sums[i].loss;
        source.tokens += windows[i].length;
    }
    const double tokens = static_cast<double>(evaluation.tokens);
    for (auto& [name, source] : evaluation.per_source) source.loss /= static_cast<double>(source.tokens);
    evaluation.sequences = static_cast<int64_t>(windows.size());
    evaluation.loss = loss / tokens;
    evaluation.next_token_accuracy = correct / tokens;
    if (with_reference) {
        evaluation.kl = kl / tokens;
        evaluation.top1_agreement = agrees / tokens;
    }
    return evaluation;
}

}  // namespace

double Evaluation::perplexity() const { return std::exp(loss); }

Evaluation evaluate(Backend& backend, const EvaluatedModel& model, const EvaluatedModel* reference,
                    const Corpus& corpus, const std::vector<Window>& windows, const RunControl& control) {
    if (reference && reference->architecture.vocab != model.architecture.vocab)
        fail_input(
            fmt::format("the reference has a vocabulary of {}, the model one of {}: they must share it",
                        reference->architecture.vocab, model.architecture.vocab));
    MeasuredRunner runner(backend);
    std::vector<WindowSums> sums(windows.size());
    double done = 0, all = 0;
    for (const Window& window : windows) all += static_cast<double>(window.length);
    const int64_t batch_tokens = backend.device() == DeviceKind::cpu
                                     ? kHostBatchTokens
                                     : tokens_that_fit(backend, windows, [&](int64_t batch, int64_t length) {
                                           TokenResults unused;
                                           const WindowBatch blank = blank_batch(batch, length);
                                           return runner.peak_of([&](Backend& on, DeviceArena& arena) {
                                               compare_batch(on, arena, model, reference, blank, unused);
                                           });
                                       });
    for (const WindowBatch& batch : batch_windows(corpus, windows, batch_tokens)) {
        if (control.stopping()) throw Interrupted{"the evaluation was stopped; nothing was kept"};
        TokenResults results;
        runner.run([&](Backend& on, DeviceArena& arena) {
            compare_batch(on, arena, model, reference, batch, results);
        });
        for (int64_t b = 0; b < batch.batch; ++b) {
            WindowSums& sum = sums[batch.windows[b]];
            sum.loss = window_sum(results.loss, b, batch.length);
            sum.correct = window_sum(results.correct, b, batch.length);
            if (reference) sum.kl = window_sum(results.kl, b, batch.length);
            if (reference) sum.agrees = window_sum(results.agrees, b, batch.length);
            if (!std::isfinite(sum.loss))
                throw Error(ErrorKind::other,
                            fmt::format("the loss is {} in window {}: look at that text, or at the "
                                        "model's weights",
                                        sum.loss, batch.windows[b]));
        }
        done += static_cast<double>(batch.batch * batch.length);
        control.report({.what = "evaluating", .done = done, .total = all, .unit = "tokens", .detail = ""});
    }
    return total(sums, corpus, windows, reference != nullptr);
}

std::vector<float> logits_of(Backend& backend, const EvaluatedModel& model,
                             const std::vector<int32_t>& tokens) {
    const int64_t length = static_cast<int64_t>(tokens.size());
    std::vector<float> logits;
    MeasuredRunner(backend).run([&](Backend& on, DeviceArena& arena) {
        const Tensor hidden = last_hidden(on, arena, model, upload(on, arena, "tokens", tokens, 1, length));
        const Tensor out =
            arena.take("logits", {1, length, model.architecture.vocab}, precise_type(on.compute_type()));
        on.run(LinearForward{.x = hidden.view({1, length, model.architecture.width}),
                             .weight = model.weights->lm_head,
                             .out = out});
        if (!arena.is_measuring()) logits = to_host(on, out);
    });
    return logits;
}

std::vector<int32_t> greedy_continuation(Backend& backend, const EvaluatedModel& model,
                                         const std::vector<int32_t>& prompt, int64_t count) {
    std::vector<int32_t> tokens = prompt;
    const int64_t vocab = model.architecture.vocab;
    for (int64_t i = 0; i < count; ++i) {
        const std::vector<float> logits = logits_of(backend, model, tokens);
        const auto last = logits.end() - vocab;
        tokens.push_back(static_cast<int32_t>(std::max_element(last, logits.end()) - last));
    }
    return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt.size()), tokens.end()};
}

}  // namespace minipuzzle
