#include <algorithm>

#include "kernels/check.h"
#include "kernels/random.h"
#include "runtime/token_source.h"

namespace minipuzzle {

PackedRows::PackedRows(const Corpus& corpus, int64_t seq_len, uint64_t seed, bool isolate)
    : corpus_(corpus), seq_len_(seq_len), seed_(seed), isolate_(isolate) {
    MP_ASSERT(seq_len > 0);
    std::size_t longest = 0;
    for (const Document& document : corpus.documents()) {
        epoch_tokens_ += static_cast<int64_t>(document.tokens.size());
        longest = std::max(longest, document.tokens.size());
    }
    if (longest < 2)
        fail_input(corpus.files()[0].path + ": nothing to train on: no row has two tokens or more");
}

const PackedRows::Epoch& PackedRows::epoch(int64_t number) const {
    if (epoch_.number == number) return epoch_;
    const auto& documents = corpus_.documents();
    epoch_.order = seeded_order(static_cast<int64_t>(documents.size()),
                                counter_random(seed_, static_cast<uint64_t>(number)));
    epoch_.starts.clear();
    int64_t start = 0;
    for (const int64_t document : epoch_.order) {
        epoch_.starts.push_back(start);
        start += static_cast<int64_t>(documents[static_cast<std::size_t>(document)].tokens.size());
    }
    epoch_.number = number;
    return epoch_;
}

PackedBatch PackedRows::rows(int64_t first_row, int64_t batch) const {
    MP_ASSERT(first_row >= 0 && batch > 0);
    // The stream from the first row on, with one token more than the rows hold: the last one's target.
    const auto count = static_cast<std::size_t>(batch * seq_len_);
    std::vector<int32_t> stream;
    std::vector<int32_t> serial;  // which document of the stretch a token is of
    int64_t position = first_row * seq_len_;
    for (int32_t documents_seen = 0; stream.size() <= count;) {
        const Epoch& now = epoch(position / epoch_tokens_);
        const int64_t within = position % epoch_tokens_;
        // The last document that starts here or before: behind documents without tokens, which start here
        // too.
        const auto place =
            std::upper_bound(now.starts.begin(), now.starts.end(), within) - now.starts.begin() - 1;
        const auto& tokens =
            corpus_.documents()[static_cast<std::size_t>(now.order[static_cast<std::size_t>(place)])].tokens;
        const int64_t begin = within - now.starts[static_cast<std::size_t>(place)];
        const int64_t take = std::min(static_cast<int64_t>(tokens.size()) - begin,
                                      static_cast<int64_t>(count + 1 - stream.size()));
        stream.insert(stream.end(), tokens.begin() + begin, tokens.begin() + begin + take);
        serial.insert(serial.end(), static_cast<std::size_t>(take), documents_seen++);
        position += take;
    }
    PackedBatch result{.batch = batch, .length = seq_len_, .tokens = {}, .targets = {}, .document = {}};
    result.tokens.assign(stream.begin(), stream.end() - 1);
    for (std::size_t i = 0; i < count; ++i) {
        const bool boundary = isolate_ && serial[i] != serial[i + 1];
        const std::size_t row_begin = i - i % static_cast<std::size_t>(seq_len_);
        result.targets.push_back(boundary ? -1 : stream[i + 1]);
        result.document.push_back(isolate_ ? serial[i] - serial[row_begin] : 0);
    }
    return result;
}

}  // namespace minipuzzle
