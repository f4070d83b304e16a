#include "runtime/token_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>

#include "kernels/check.h"
#include "kernels/random.h"
#include "runtime/files.h"

namespace minipuzzle {
namespace {

using nlohmann::json;

// FNV-1a, 64 bits.
class ContentHash {
  public:
    void add(std::string_view bytes) {
        for (const char byte : bytes) value_ = (value_ ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
    }
    void add(uint32_t number) {
        for (int shift = 0; shift < 32; shift += 8)
            value_ = (value_ ^ (number >> shift & 0xff)) * 0x100000001b3u;
    }
    uint64_t value() const { return value_; }

  private:
    uint64_t value_ = 0xcbf29ce484222325u;
};

// Makes documents of rows; `where` is FILE or FILE:LINE, for messages.
class DocumentReader {
  public:
    DocumentReader(const TokenizerContext& context, bool training) : context_(context), training_(training) {}

    Document from_text(std::string_view text, const std::string& where) const {
        if (context_.tokenizer == nullptr) {
            fail_input(where + ": a text row needs tokenizer.json in the model folder; there is none");
        }
        ContentHash hash;
        hash.add(text);
        Document document{.tokens = encode(text, where), .source = {}, .content_hash = hash.value()};
        if (training_ && context_.eos >= 0) document.tokens.push_back(context_.eos);
        for (const int32_t id : document.tokens) {
            if (id < context_.vocab) continue;
            fail_input(fmt::format("{}: the tokenizer gives the id {}, but the model's vocabulary is {}",
                                   where, id, context_.vocab));
        }
        return document;
    }

    Document from_row(std::string_view line, const std::string& where) const {
        const json row = parse(line, where);
        if (!row.is_object()) fail_input(where + ": expected a row {\"text\": ...} or {\"tokens\": [...]}");
        const auto text = row.find("text"), tokens = row.find("tokens");
        if ((text == row.end()) == (tokens == row.end())) {
            fail_input(fmt::format("{}: the row has {} of \"text\" and \"tokens\"; expected one of them",
                                   where, text == row.end() ? "neither" : "both"));
        }
        Document document;
        if (tokens != row.end()) {
            document = from_tokens(*tokens, where);
        } else {
            if (!text->is_string()) fail_input(where + ": \"text\" is not text");
            document = from_text(text->get_ref<const std::string&>(), where);
        }
        if (const auto source = row.find("source"); source != row.end() && !source->is_null()) {
            if (!source->is_string()) fail_input(where + ": \"source\" is not text");
            document.source = source->get<std::string>();
        }
        return document;
    }

  private:
    std::vector<int32_t> encode(std::string_view text, const std::string& where) const {
        try {
            return context_.tokenizer->encode(text);
        } catch (const Error& e) {
            throw Error(e.kind(), fmt::format("{}: {}", where, e.what()));
        }
    }

    static json parse(std::string_view line, const std::string& where) {
        try {
            return json::parse(line);
        } catch (const json::parse_error& e) {
            fail_input(fmt::format("{}: not JSON from byte {} of the line on", where, e.byte));
        }
    }

    Document from_tokens(const json& tokens, const std::string& where) const {
        if (!tokens.is_array()) fail_input(where + ": \"tokens\" is not a list of token ids");
        Document document;
        ContentHash hash;
        document.tokens.reserve(tokens.size());
        for (const json& id : tokens) {
            if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(context_.vocab)) {
                fail_input(fmt::format("{}: {} among the tokens is not an integer in [0, {})", where,
                                       id.dump(), context_.vocab));
            }
            document.tokens.push_back(id.get<int32_t>());
            hash.add(id.get<uint32_t>());
        }
        document.content_hash = hash.value();
        return document;
    }

    const TokenizerContext& context_;
    bool training_;
};

void refuse_compressed(const std::filesystem::path& path) {
    for (const std::string_view extension : {".xz", ".gz", ".zst", ".bz2", ".zip"}) {
        if (path.extension() != extension) continue;
        fail_input(
            fmt::format("{}: a compressed file; expected JSONL or .txt, decompress it first", path.string()));
    }
}

std::string_view without_byte_order_mark(std::string_view content) {
    constexpr std::string_view kMark = "\xef\xbb\xbf";
    return content.substr(0, kMark.size()) == kMark ? content.substr(kMark.size()) : content;
}

void read_documents(const std::string& path, std::string_view content, const DocumentReader& reader,
                    std::vector<Document>& documents) {
    const std::size_t before = documents.size();
    if (std::filesystem::path(path).extension() == ".txt") {
        if (!content.empty()) documents.push_back(reader.from_text(content, path));
    } else {
        int64_t line_number = 0;
        for (std::size_t begin = 0; begin < content.size();) {
            const std::size_t end = std::min(content.find('\n', begin), content.size());
            const std::string_view line = content.substr(begin, end - begin);
            ++line_number;
            begin = end + 1;
            if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
            documents.push_back(reader.from_row(line, fmt::format("{}:{}", path, line_number)));
        }
    }
    if (documents.size() == before) fail_input(path + ": holds no rows");
}

}  // namespace

Corpus::Corpus(const std::vector<std::string>& paths, const TokenizerContext& context, bool training) {
    MP_ASSERT(context.vocab > 0 && context.eos < context.vocab);
    const DocumentReader reader(context, training);
    for (const std::string& path : paths) {
        refuse_compressed(path);
        const std::string content = read_file(path);
        read_documents(path, without_byte_order_mark(content), reader, documents_);
        files_.push_back({.path = path, .hash = sha256(content)});
    }
    if (documents_.empty()) fail_input("no data file is given; expected JSONL or .txt files");
}

std::vector<Window> cut_windows(const Corpus& corpus, int64_t seq_len) {
    MP_ASSERT(seq_len > 0);
    std::vector<Window> windows;
    for (std::size_t d = 0; d < corpus.documents().size(); ++d) {
        const auto last = static_cast<int64_t>(corpus.documents()[d].tokens.size()) - 1;
        for (int64_t begin = 0; begin < last; begin += seq_len) {
            windows.push_back({.document = static_cast<int64_t>(d),
                               .begin = begin,
                               .length = std::min(seq_len, last - begin)});
        }
    }
    return windows;
}

std::vector<int64_t> seeded_order(int64_t n, uint64_t seed) {
    std::vector<int64_t> order(static_cast<std::size_t>(n));
    std::iota(order.begin(), order.end(), int64_t{0});
    for (std::size_t i = order.size(); i-- > 1;) {
        __extension__ using Product = unsigned __int128;
        const auto draw =
            static_cast<std::size_t>(static_cast<Product>(counter_random(seed, i)) * (i + 1) >> 64);
        std::swap(order[i], order[draw]);
    }
    return order;
}

std::vector<Window> choose_windows(const Corpus& corpus, int64_t seq_len, int64_t samples, uint64_t seed) {
    MP_ASSERT(samples >= 0);
    const std::vector<Window> windows = cut_windows(corpus, seq_len);
    if (windows.empty()) {
        fail_input(
            fmt::format("{}: nothing to predict: no row has two tokens or more", corpus.files()[0].path));
    }
    if (samples == 0) return windows;
    std::vector<Window> chosen;
    for (const int64_t i : seeded_order(static_cast<int64_t>(windows.size()), seed)) {
        if (static_cast<int64_t>(chosen.size()) == samples) break;
        chosen.push_back(windows[static_cast<std::size_t>(i)]);
    }
    return chosen;
}

std::vector<WindowBatch> batch_windows(const Corpus& corpus, const std::vector<Window>& windows,
                                       int64_t max_tokens) {
    std::vector<std::vector<int64_t>> groups;  // indices of windows of one length
    std::map<int64_t, std::size_t> group_of;   // by length
    for (std::size_t i = 0; i < windows.size(); ++i) {
        const auto [group, added] = group_of.emplace(windows[i].length, groups.size());
        if (added) groups.emplace_back();
        groups[group->second].push_back(static_cast<int64_t>(i));
    }
    std::vector<WindowBatch> batches;
    for (const std::vector<int64_t>& group : groups) {
        const int64_t length = windows[static_cast<std::size_t>(group[0])].length;
        const int64_t most = std::max(int64_t{1}, max_tokens / length);
        for (const int64_t index : group) {
            if (batches.empty() || batches.back().length != length || batches.back().batch == most) {
                batches.push_back({.windows = {}, .batch = 0, .length = length, .tokens = {}, .targets = {}});
            }
            WindowBatch& batch = batches.back();
            const Window& window = windows[static_cast<std::size_t>(index)];
            const auto& tokens = corpus.documents()[static_cast<std::size_t>(window.document)].tokens;
            const auto first = tokens.begin() + window.begin;
            batch.windows.push_back(index);
            batch.tokens.insert(batch.tokens.end(), first, first + length);
            batch.targets.insert(batch.targets.end(), first + 1, first + length + 1);
            ++batch.batch;
        }
    }
    return batches;
}

}  // namespace minipuzzle
