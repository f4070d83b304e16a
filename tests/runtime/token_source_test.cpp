#include "runtime/token_source.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/check.h"
#include "runtime/files.h"
#include "tests/catch.h"
#include "tests/support/errors.h"
#include "tests/support/temp_dir.h"

using namespace minipuzzle;
using minipuzzle::test::bad_input;
using minipuzzle::test::TempDir;
using nlohmann::json;

namespace {

using Ids = std::vector<int32_t>;

const Tokenizer& demo_tokenizer() {
    static const Tokenizer tokenizer(MINIPUZZLE_SOURCE_DIR "/configs/demo/model/tokenizer.json");
    return tokenizer;
}

TokenizerContext demo_context() { return {.tokenizer = &demo_tokenizer(), .vocab = 2048, .eos = 2}; }

Corpus corpus_of(const std::string& content, const std::string& name = "rows.jsonl", bool training = false) {
    const TempDir folder;
    return Corpus({folder.write(name, content).string()}, demo_context(), training);
}

// Documents of the given lengths; every token of the corpus is another one, counted from 0.
Corpus corpus_of_lengths(const std::vector<int>& lengths) {
    std::string content;
    int next = 0;
    for (const int length : lengths) {
        Ids tokens;
        for (int i = 0; i < length; ++i) tokens.push_back(next++);
        content += json{{"tokens", tokens}}.dump() + "\n";
    }
    return corpus_of(content);
}

std::string row_error(const std::string& content, const std::string& name = "rows.jsonl") {
    return bad_input([&] { corpus_of(content, name); });
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("Rows of text get the template, and eos when training; rows of tokens get nothing") {
    const std::string rows =
        "{\"text\": \"Hello there\", \"source\": \"prose\", \"url\": [1]}\n{\"tokens\": [5, 6, 7]}\n";
    const Ids hello = demo_tokenizer().encode("Hello there");
    REQUIRE(hello.front() == 1);
    const Corpus measured = corpus_of(rows);
    REQUIRE(measured.documents().size() == 2);
    CHECK(measured.documents()[0].tokens == hello);
    CHECK(measured.documents()[0].source == "prose");
    CHECK(measured.documents()[1].tokens == Ids{5, 6, 7});
    CHECK(measured.documents()[1].source.empty());
    CHECK(measured.files()[0].hash == sha256(rows));
    Ids trained = hello;
    trained.push_back(2);
    const Corpus training = corpus_of(rows, "rows.jsonl", true);
    CHECK(training.documents()[0].tokens == trained);
    CHECK(training.documents()[1].tokens == Ids{5, 6, 7});
    CHECK(training.documents()[0].content_hash == measured.documents()[0].content_hash);
    CHECK(training.documents()[0].content_hash != training.documents()[1].content_hash);
}

TEST_CASE("A .txt file is one document; a byte order mark, CRLF and blank lines pass") {
    const std::string text = "two\n\nparagraphs\n";
    const Corpus plain = corpus_of(text, "book.txt");
    REQUIRE(plain.documents().size() == 1);
    CHECK(plain.documents()[0].tokens == demo_tokenizer().encode(text));
    const Corpus row = corpus_of(json{{"text", text}}.dump());
    CHECK(row.documents()[0].content_hash == plain.documents()[0].content_hash);
    CHECK(corpus_of("\xef\xbb\xbf" + text, "book.txt").documents()[0].tokens == plain.documents()[0].tokens);
    const Corpus windows =
        corpus_of("\xef\xbb\xbf{\"tokens\": [1]}\r\n\r\n  \n{\"tokens\": [2], \"source\": null}");
    REQUIRE(windows.documents().size() == 2);
    CHECK(windows.documents()[1].tokens == Ids{2});
}

TEST_CASE("Files are read in the order given") {
    const TempDir folder;
    const std::string first = folder.write("b.jsonl", "{\"tokens\": [9]}").string();
    const std::string second = folder.write("a.jsonl", "{\"tokens\": [8]}").string();
    const Corpus corpus({first, second}, demo_context(), false);
    CHECK(corpus.documents()[0].tokens == Ids{9});
    CHECK(corpus.documents()[1].tokens == Ids{8});
    CHECK(corpus.files()[1].path == second);
}

TEST_CASE("A bad row is an error that says file and line") {
    CHECK(contains(row_error("{\"tokens\": [1]}\n\n{\"tokens\": [2}"), "rows.jsonl:3"));
    CHECK(contains(row_error("{\"id\": 4}"), "neither"));
    CHECK(contains(row_error("{\"text\": \"a\", \"tokens\": [1]}"), "both"));
    CHECK(contains(row_error("{\"tokens\": [1, 2048]}"),
                   "2048 among the tokens is not an integer in [0, 2048)"));
    CHECK(contains(row_error("{\"tokens\": [-1]}"), "-1"));
    CHECK(contains(row_error("{\"tokens\": [1.0]}"), "1.0"));
    CHECK(contains(row_error("{\"tokens\": [18446744073709551615]}"), "18446744073709551615"));
    CHECK(contains(row_error("{\"tokens\": [\"1\"]}"), "\"1\""));
    CHECK(contains(row_error("{\"tokens\": \"1\"}"), "list"));
    CHECK(contains(row_error("{\"text\": 1}"), "text"));
    CHECK(contains(row_error("{\"text\": \"a\", \"source\": 3}"), "source"));
    CHECK(contains(row_error("[1, 2]"), "expected a row"));
    CHECK(contains(row_error("{\"text\": \"\xff\"}"), "rows.jsonl:1"));
    CHECK(contains(row_error("{\"text\": \"\\ud800\"}"), "rows.jsonl:1"));
    CHECK(contains(row_error("bad \xff text", "book.txt"), "book.txt"));
    CHECK(contains(row_error("\n \n"), "no rows"));
    CHECK(contains(row_error(""), "no rows"));
    CHECK(contains(row_error("", "book.txt"), "no rows"));
    CHECK(contains(row_error("\xfd"
                             "7zXZ",
                             "rows.jsonl.xz"),
                   "decompress"));
    CHECK(contains(bad_input([] { Corpus({"/nonexistent/rows.jsonl"}, demo_context(), false); }),
                   "rows.jsonl"));
    CHECK(contains(bad_input([] { Corpus({}, demo_context(), false); }), "no data file"));
    const TempDir folder;
    const std::string path = folder.write("rows.jsonl", "{\"text\": \"Hello\"}").string();
    CHECK(contains(bad_input([&] { Corpus({path}, {.tokenizer = nullptr, .vocab = 2048}, false); }),
                   "needs tokenizer.json"));
    CHECK(contains(bad_input([&] { Corpus({path}, {.tokenizer = &demo_tokenizer(), .vocab = 60}, false); }),
                   "the model's vocabulary is 60"));
}

TEST_CASE("Windows: cut every T tokens with one of overlap; a tail counts, a single token does not") {
    const Corpus corpus = corpus_of_lengths({1, 2, 4, 5, 8, 9, 10, 0});
    std::vector<std::vector<int64_t>> found;
    for (const Window& w : cut_windows(corpus, 4)) found.push_back({w.document, w.begin, w.length});
    CHECK(found == std::vector<std::vector<int64_t>>{{1, 0, 1},
                                                     {2, 0, 3},
                                                     {3, 0, 4},
                                                     {4, 0, 4},
                                                     {4, 4, 3},
                                                     {5, 0, 4},
                                                     {5, 4, 4},
                                                     {6, 0, 4},
                                                     {6, 4, 4},
                                                     {6, 8, 1}});
    int64_t predicted = 0;
    for (const Window& w : cut_windows(corpus, 3)) predicted += w.length;
    CHECK(predicted == 1 + 3 + 4 + 7 + 8 + 9);
    CHECK(contains(bad_input([] {
                       choose_windows(corpus_of_lengths({1, 1}), 4, 0, 0);
                   }),
                   "nothing to predict"));
}

TEST_CASE("The seeded order is a permutation that never changes") {
    // Frozen: a change here would change every sample and every training run.
    CHECK(seeded_order(10, 0) == std::vector<int64_t>{6, 4, 1, 7, 8, 0, 9, 2, 3, 5});
    CHECK(seeded_order(10, 42) == std::vector<int64_t>{4, 2, 6, 9, 3, 0, 8, 5, 1, 7});
    CHECK(seeded_order(0, 1).empty());
    CHECK(seeded_order(1, 1) == std::vector<int64_t>{0});
    std::vector<int64_t> order = seeded_order(1000, 3);
    CHECK(order != seeded_order(1000, 4));
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < 1000; ++i) CHECK(order[static_cast<std::size_t>(i)] == i);
    // Each of 8 places holds value 0 in an eighth of 4000 seeds: 500 expected, standard deviation 21.
    std::vector<int> places(8);
    for (uint64_t seed = 0; seed < 4000; ++seed) {
        const std::vector<int64_t> eight = seeded_order(8, seed);
        ++places[static_cast<std::size_t>(std::find(eight.begin(), eight.end(), 0) - eight.begin())];
    }
    for (const int count : places) CHECK(std::abs(count - 500) < 105);  // 5 standard deviations
}

TEST_CASE("Samples are windows in seeded order; all of them keep the corpus's") {
    const Corpus corpus = corpus_of_lengths({9, 9, 9});
    const std::vector<Window> all = choose_windows(corpus, 4, 0, 7);
    REQUIRE(all.size() == 6);
    const std::vector<int64_t> order = seeded_order(6, 7);
    const std::vector<Window> some = choose_windows(corpus, 4, 3, 7);
    REQUIRE(some.size() == 3);
    for (std::size_t i = 0; i < 3; ++i) {
        CHECK(some[i].document == all[static_cast<std::size_t>(order[i])].document);
        CHECK(some[i].begin == all[static_cast<std::size_t>(order[i])].begin);
    }
    CHECK(choose_windows(corpus, 4, 100, 7).size() == 6);
}

TEST_CASE("Windows of one length are stacked, at most max_tokens a batch and at least one window") {
    const Corpus corpus = corpus_of_lengths({3, 6, 3, 6, 3});
    const std::vector<Window> windows = cut_windows(corpus, 8);
    const std::vector<WindowBatch> batches = batch_windows(corpus, windows, 4);
    REQUIRE(batches.size() == 4);
    CHECK(batches[0].windows == std::vector<int64_t>{0, 2});
    CHECK(batches[0].batch == 2);
    CHECK(batches[0].length == 2);
    CHECK(batches[0].tokens == Ids{0, 1, 9, 10});
    CHECK(batches[0].targets == Ids{1, 2, 10, 11});
    CHECK(batches[1].windows == std::vector<int64_t>{4});
    CHECK(batches[2].windows == std::vector<int64_t>{1});
    CHECK(batches[3].windows == std::vector<int64_t>{3});
    CHECK(batches[3].tokens == Ids{12, 13, 14, 15, 16});
}

TEST_CASE("Packing: an epoch predicts every pair of every document exactly once and masks its last tokens") {
    const Corpus corpus = corpus_of_lengths({7, 1, 0, 13, 4, 2, 1});
    const int64_t epoch = 28;  // tokens
    for (const int64_t seq_len : {1, 4, 7, 28, 56}) {
        CAPTURE(seq_len);
        const PackedRows rows(corpus, seq_len, 5, true);
        REQUIRE(rows.epoch_tokens() == epoch);
        const int64_t row_count = 2 * epoch / seq_len;  // all of two epochs
        const PackedBatch batch = rows.rows(0, row_count);
        std::map<std::pair<int, int>, int> pairs;
        int masked = 0;
        for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
            const int32_t target = batch.targets[i];
            masked += target < 0 ? 1 : 0;
            if (target >= 0) ++pairs[{batch.tokens[i], target}];
            const bool row_start = static_cast<int64_t>(i) % seq_len == 0;
            const bool new_document = !row_start && batch.targets[i - 1] < 0;
            CHECK(batch.document[i] == (row_start ? 0 : batch.document[i - 1] + (new_document ? 1 : 0)));
        }
        CHECK(masked == 2 * 6);  // the documents that have tokens
        std::map<std::pair<int, int>, int> expected;
        for (const Document& document : corpus.documents()) {
            for (std::size_t i = 0; i + 1 < document.tokens.size(); ++i) {
                expected[{document.tokens[i], document.tokens[i + 1]}] = 2;
            }
        }
        CHECK(pairs == expected);
    }
}

TEST_CASE("Packing: a row is a function of its number alone, and every epoch has its own order") {
    const Corpus corpus = corpus_of_lengths({7, 3, 13, 4, 2, 5, 6, 1, 8, 9});
    const PackedRows rows(corpus, 5, 11, true);
    const PackedBatch whole = rows.rows(0, 60);
    for (const int64_t row : {59, 0, 17, 11, 12, 40}) {
        const PackedBatch one = PackedRows(corpus, 5, 11, true).rows(row, 1);
        const PackedBatch again = rows.rows(row, 1);
        CHECK(one.tokens == again.tokens);
        CHECK(std::equal(one.tokens.begin(), one.tokens.end(), whole.tokens.begin() + row * 5));
        CHECK(std::equal(one.targets.begin(), one.targets.end(), whole.targets.begin() + row * 5));
        CHECK(std::equal(one.document.begin(), one.document.end(), whole.document.begin() + row * 5));
    }
    const auto epoch = [&](int64_t number) {
        const auto begin = whole.tokens.begin() + number * rows.epoch_tokens();
        return Ids(begin, begin + rows.epoch_tokens());
    };
    CHECK(epoch(0) != epoch(1));
    CHECK(PackedRows(corpus, 5, 12, true).rows(0, 12).tokens != rows.rows(0, 12).tokens);
}

TEST_CASE("Packing without isolation: one document a row, a last token predicts the next document's first") {
    const Corpus corpus = corpus_of_lengths({7, 3, 13, 4});
    const PackedBatch apart = PackedRows(corpus, 6, 1, true).rows(3, 9);
    const PackedBatch joined = PackedRows(corpus, 6, 1, false).rows(3, 9);
    const PackedBatch next = PackedRows(corpus, 6, 1, false).rows(12, 1);
    CHECK(joined.tokens == apart.tokens);
    CHECK(joined.document == std::vector<int32_t>(54, 0));
    for (std::size_t i = 0; i + 1 < joined.tokens.size(); ++i)
        CHECK(joined.targets[i] == joined.tokens[i + 1]);
    CHECK(joined.targets.back() == next.tokens.front());
    CHECK(std::count(apart.targets.begin(), apart.targets.end(), -1) > 0);
    CHECK(contains(bad_input([] {
                       const Corpus ones = corpus_of_lengths({1, 1});
                       PackedRows(ones, 4, 0, true);
                   }),
                   "nothing to train on"));
}

TEST_CASE("The demo's rows: no document stands in two files, every source is there, at most 900 KB in all") {
    const std::string folder = MINIPUZZLE_SOURCE_DIR "/configs/demo/";
    std::map<uint64_t, std::string> seen;
    std::map<std::string, std::string> normalised;  // letters and digits alone -> file
    std::size_t bytes = 0;
    for (const std::string name : {"calib", "select", "test", "train"}) {
        CAPTURE(name);
        const std::string path = folder + name + ".jsonl";
        const std::string content = read_file(path);
        bytes += content.size();
        const Corpus corpus({path}, demo_context(), name == "train");
        std::set<std::string> sources;
        for (const Document& document : corpus.documents()) {
            sources.insert(document.source);
            CHECK(seen.emplace(document.content_hash, name).second);
            std::string bare;
            for (const char c : demo_tokenizer().decode(document.tokens, true)) {
                if (std::isalnum(static_cast<unsigned char>(c)) != 0)
                    bare += static_cast<char>(std::tolower(c));
            }
            CHECK(normalised.emplace(bare, name).second);
        }
        CHECK(sources == std::set<std::string>{"code", "docs", "math", "prose"});
        CHECK(choose_windows(corpus, 256, 0, 0).size() >= 150);
    }
    CHECK(bytes <= 900000);
}
