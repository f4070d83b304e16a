// Data files to windows of token ids: rows, cutting, seeded order, packing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "runtime/tokenizer.h"

namespace minipuzzle {

// One document: a JSONL row ({"text"} or {"tokens"}, optional "source") or a whole .txt file.
struct Document {
    std::vector<int32_t> tokens;
    std::string source;         // "" where the row names none
    uint64_t content_hash = 0;  // of the text's bytes or the tokens' values, to find a document in two files
};

struct DataFile {
    std::string path;
    std::string hash;  // sha256 of the content
};

// What of a model the data needs.
struct TokenizerContext {
    const Tokenizer* tokenizer =
        nullptr;  // null: {"text"} rows are Error ("needs tokenizer.json in the model folder")
    int64_t vocab = 0;
    int32_t eos = -1;  // appended to {"text"} rows when training; -1: none
};

// All rows of the files, in order: a .txt file is one document, every other file JSONL (blank lines, CRLF and
// a byte order mark pass; keys other than the three are the user's own and ignored). {"tokens"} rows get
// nothing added; {"text"} rows get the tokenizer's template, plus eos when `training`. Errors (bad_input)
// with file and line: no such file, a compressed file, no rows, a row that is not JSON or has neither or both
// of text and tokens, ids that are not integers in [0, vocab).
class Corpus {
  public:
    Corpus(const std::vector<std::string>& paths, const TokenizerContext& context, bool training);
    const std::vector<Document>& documents() const { return documents_; }
    const std::vector<DataFile>& files() const { return files_; }

  private:
    std::vector<Document> documents_;
    std::vector<DataFile> files_;
};

// A window of at most seq_len + 1 tokens of one document: inputs are all but the last, targets all but the
// first.
struct Window {
    int64_t document = 0;
    int64_t begin = 0;   // in the document's tokens
    int64_t length = 0;  // tokens predicted, 1..seq_len; the window holds length + 1 tokens
};

// Rows are cut every `seq_len` tokens with one token of overlap; a shorter tail counts (a tail must predict
// something: rows of one token give no window). In corpus order.
std::vector<Window> cut_windows(const Corpus& corpus, int64_t seq_len);

// A permutation of [0, n) that depends on (seed, n) alone: Fisher-Yates from the top, where the draw for
// place i is counter_random(seed, i) * (i + 1) / 2^64 (bias under n / 2^64). It never changes between
// versions.
std::vector<int64_t> seeded_order(int64_t n, uint64_t seed);

// cut_windows, then `samples` of them in seeded order; samples 0 (all) keeps corpus order.
// Error bad_input when nothing is left.
std::vector<Window> choose_windows(const Corpus& corpus, int64_t seq_len, int64_t samples, uint64_t seed);

// Windows of one length stacked: tokens and targets are [B, T].
struct WindowBatch {
    std::vector<int64_t> windows;  // indices into the list that was batched
    int64_t batch = 0, length = 0;
    std::vector<int32_t> tokens, targets;
};
// Groups windows of equal length, keeping list order inside a group and the groups by first appearance; at
// most `max_tokens` tokens a batch, at least one window.
std::vector<WindowBatch> batch_windows(const Corpus& corpus, const std::vector<Window>& windows,
                                       int64_t max_tokens);

// Training rows of exactly seq_len positions, cut from one endless stream: the documents follow each other
// with every token, in a seeded order redrawn each epoch, and row k is stream positions [k T, (k+1) T). A
// document that does not fit continues in the next row (as a new document there); no pair of neighbouring
// tokens is lost to the cut, so an epoch predicts each document's n - 1 pairs exactly once. Row k is a pure
// function of (corpus, seq_len, seed, k), so a run resumes from a row number alone.
struct PackedBatch {
    int64_t batch = 0, length = 0;
    std::vector<int32_t> tokens, targets;  // [B, T]; the target at a document's last token is -1 (masked)
    std::vector<int32_t> document;         // [B, T], counted from 0 in each row
};
class PackedRows {
  public:
    // Keeps a reference to the corpus. Error bad_input where no document has two tokens.
    PackedRows(const Corpus& corpus, int64_t seq_len, uint64_t seed, bool isolate);
    // Rows [first_row, first_row + batch). With isolate off every row is one document and no target is
    // masked: a document's last token predicts the next document's first. One thread at a time (it remembers
    // the order of the last epoch asked for).
    PackedBatch rows(int64_t first_row, int64_t batch) const;
    // Stream positions an epoch takes: the corpus's tokens.
    int64_t epoch_tokens() const { return epoch_tokens_; }

  private:
    struct Epoch {
        int64_t number = -1;
        std::vector<int64_t> order;   // documents
        std::vector<int64_t> starts;  // of each in the epoch's tokens
    };
    const Epoch& epoch(int64_t number) const;

    const Corpus& corpus_;
    int64_t seq_len_;
    uint64_t seed_;
    bool isolate_;
    int64_t epoch_tokens_ = 0;
    mutable Epoch epoch_;
};

}  // namespace minipuzzle
